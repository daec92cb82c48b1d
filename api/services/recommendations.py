"""Recommendations: apply the tuner's answer to an engine, or start it elsewhere."""

from __future__ import annotations

from dataclasses import replace

from api.documents.answer import read_recommendation
from api.documents.inventory import weights_held
from api.documents.launch import launch_for
from api.documents.policy import PolicyDocument, envelope_in, model_from_json, other_shape
from api.documents.recommendation import recommended_settings, within_envelope
from api.schemas.launch import LaunchView
from api.schemas.observed import UNNAMED
from api.schemas.serving import ChangeSet
from api.services import observed, policies
from api.services.policies import Authorship
from api.web.auth import Caller
from api.web.errors import ApiError
from engine.spec.settings import Settings
from store import UnitOfWork
from store.models import EngineRow, RecommendationRow
from store.models.base import Json
from tuner.launch.command import System
from tuner.spec.errors import TunerError
from tuner.work.counts import model_sizes
from tuner.work.models import find_model


def apply(
    uow: UnitOfWork,
    recommendation_id: str,
    engine_id: str,
    *,
    caller: Caller,
    reason: str,
    is_dry_run: bool = False,
) -> ChangeSet:
    """Write the recommendation as the engine's next policy; its schedule goes with it.

    SLA and schedule are the controller's once the engine has applied it, which starts the
    controller afresh. A dry run only says what that would change. An observed engine is held to it
    at once; its settings stay where the service cannot restart it, which is warned of.

    Raises:
        ApiError: 409, the job found nothing to recommend, or for another model.
        PolicyError: caps above the engine's envelope, with the class the change would need.
    """
    engine = uow.engines.get(engine_id, for_update=True)
    before = policies.current_document(uow, engine)
    after, control, left_out = as_policy(uow, recommendation_id, engine, before)
    by = Authorship(caller=caller, origin="recommendation", reason=reason)
    found = policies.write(uow, engine, before, after, by, control=control, is_dry_run=is_dry_run)
    told = [
        *found.warnings,
        *left_out,
        *_other_name(uow, recommendation_id, engine),
        *_other_weights(uow, recommendation_id, engine),
    ]
    return found.model_copy(update={"warnings": told})


def as_policy(
    uow: UnitOfWork, recommendation_id: str, engine: EngineRow, before: PolicyDocument
) -> tuple[PolicyDocument, Json, list[str]]:
    """What a recommendation makes of the policy ``before``, what goes in force with it, and in
    words what of it the engine cannot be asked for.

    Raises:
        ApiError: 409, the job found nothing to recommend, or for another model.
    """
    recommendation = _recommended(uow, recommendation_id)
    _require_model(uow, recommendation, engine)
    settings, left_out = observed.settings_for(
        uow, engine, before.settings, recommended_settings(recommendation.document)
    )
    after = replace(
        before,
        settings=settings,
        sla=recommendation.sla,
        provenance={
            "recommendation": recommendation.id,
            "cost_model": recommendation.cost_model_id,
        },
    )
    envelope = envelope_in(engine.envelope)
    control = {
        "recommendation_id": recommendation.id,
        "schedule": within_envelope(recommendation.schedule, envelope, "bands"),
        "capacity_table": within_envelope(
            recommendation.document.get("capacity_table"), envelope, "entries", "others"
        ),
    }
    return after, control, left_out


def _require_model(uow: UnitOfWork, recommendation: RecommendationRow, engine: EngineRow) -> None:
    """Raises ApiError where a model of other sizes was tuned."""
    served = engine.model
    if not served and (found := find_model(engine.model_name)) is not None:
        served = model_sizes(found)
    differing = other_shape(recommendation.document.get("model") or {}, served)
    if differing is not None:
        raise ApiError(
            409,
            "other_model",
            f"it was tuned for {_tuned_model(uow, recommendation) or 'another model'}, and engine "
            f"{engine.name} serves {engine.model_name} ({differing}): tune for the model that the "
            "engine serves, or apply it to an engine that serves the other",
        )


def _other_name(uow: UnitOfWork, recommendation_id: str, engine: EngineRow) -> list[str]:
    """That a model of another name was tuned; it may be the same one all the same."""
    tuned = _tuned_model(uow, uow.recommendations.get(recommendation_id))
    served = _name(engine.model_name)
    if not tuned or served in (tuned, UNNAMED):
        return []
    return [f"tuned for {tuned}, and the engine serves {served}: see that they are one model"]


def _tuned_model(uow: UnitOfWork, recommendation: RecommendationRow) -> str:
    """The name of the model that was tuned; empty: not known."""
    job = None if recommendation.job_id is None else uow.jobs.find(recommendation.job_id)
    return _name("" if job is None else job.spec.get("model_dir", ""))


def _other_weights(uow: UnitOfWork, recommendation_id: str, engine: EngineRow) -> list[str]:
    """That the model was tuned with its layers held otherwise."""
    cost_model_id = uow.recommendations.get(recommendation_id).cost_model_id
    if cost_model_id is None or not engine.model:
        return []
    tuned = uow.cost_models.get(cost_model_id).document.get("weights")
    served = weights_held(model_from_json(engine.model), policies.inventory_of(engine))
    if None in (tuned, served) or tuned == served:
        return []
    return [
        f"tuned with {tuned} weights, and the engine holds {served} ones: its steps take another "
        "time than what was found rests on"
    ]


def _name(model: str) -> str:
    return model.rstrip("/").rpartition("/")[2]


def settings_of(uow: UnitOfWork, recommendation_id: str) -> Settings:
    """The settings it recommends.

    Raises:
        ApiError: 409, the job found nothing to recommend.
    """
    return recommended_settings(_recommended(uow, recommendation_id).document)


def export(uow: UnitOfWork, recommendation_id: str, system: System) -> LaunchView:
    """How to start a recommendation on a serving system, as the tuner wrote it.

    Raises:
        ApiError: 409, the job found nothing to recommend, or there is no command for the system.
    """
    recommendation = _recommended(uow, recommendation_id)
    try:
        launch = launch_for(read_recommendation(recommendation.document, None).launch, system)
    except TunerError as error:
        raise ApiError(409, "no_command", str(error)) from error
    return LaunchView.model_validate(launch)


def _recommended(uow: UnitOfWork, recommendation_id: str) -> RecommendationRow:
    """The recommendation, which recommends something."""
    found = uow.recommendations.get(recommendation_id)
    if not found.document:
        raise ApiError(409, "nothing_recommended", "no plan met the SLA; see the job's report")
    return found
