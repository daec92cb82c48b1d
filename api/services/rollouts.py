"""Rollouts: start, read, cancel."""

from __future__ import annotations

from api.documents.inventory import weights_held
from api.documents.policy import PolicyDocument, model_from_json
from api.documents.rollout import canary_from_json, limits_from_json, limits_to_json
from api.documents.tuning_spec import field_of, foreseen_scale
from api.schemas.rollouts import (
    CanaryView,
    EffectView,
    ReplayIn,
    RolloutCreate,
    RolloutDetail,
    RolloutView,
)
from api.services import effects, identity, policies, recommendations, rollout_moves
from api.services.policies import Authorship
from api.web.auth import Caller
from api.web.errors import ApiError, FieldError
from api.web.settings import ServiceSettings
from engine.policy.document import REPLICAS, KnobClass
from policies.rollout import Pair, RolloutReason
from store import ConflictError, UnitOfWork
from store.models import CostModel, EngineRow, RolloutRow, RolloutState
from store.models.base import Json
from tuner.hardware import parse_hardware
from tuner.spec.errors import TunerError
from tuner.step_model.model import StepModel

# Changes of these classes can be made and taken back within one slice.
TAKES_TURNS = (KnobClass.HOT, KnobClass.DRAIN)
OWN_FIELDS = (
    "id",
    "engine_id",
    "state",
    "code",
    "reason",
    "control_version",
    "limits",
    "replay",
    "verdict",
    "created_by",
    "created_at",
    "finished_at",
)


def create(
    uow: UnitOfWork, body: RolloutCreate, settings: ServiceSettings, *, caller: Caller
) -> RolloutRow:
    """Begin a rollout.

    Raises:
        NotFoundError: no such engine, recommendation or cost model.
        ApiError: 409, the engine is not ready for it, the candidate changes nothing or needs other
            ranks, or there are no step times to simulate it with.
        PolicyError, PolicyInputError: a candidate or limits that cannot be.
    """
    limits = body.limits.limits
    engine = uow.engines.get(body.engine_id, for_update=True)
    _require_free(uow, engine)
    before = policies.current_document(uow, engine)
    after, control = before.patched(body.patch or {}), policies.current(uow, engine).control
    if body.recommendation_id is not None:
        after, control, _ = recommendations.as_policy(uow, body.recommendation_id, engine, before)
    _check_candidate(uow, engine, before, after, caller)
    _require_ready(engine, after, settings)
    rollout = uow.rollouts.add(
        RolloutRow(
            engine_id=engine.id,
            state=RolloutState.REPLAYING,
            code=RolloutReason.CREATED,
            reason=body.reason,
            document=after.to_json(),
            control=control,
            control_version=engine.desired_version,
            written_version=engine.desired_version,
            limits=limits_to_json(limits),
            replay=_replay(uow, engine, body.replay),
            last_event_seq=0,
            created_by=caller.actor,
        )
    )
    rollout_moves.move(
        uow, rollout, RolloutState.REPLAYING, RolloutReason.CREATED, body.reason, caller=caller
    )
    return rollout


def cancel(uow: UnitOfWork, rollout_id: str, *, caller: Caller) -> RolloutRow:
    """End a rollout by hand; the engine is asked for what it ran before. Twice is as once.

    Raises:
        ConflictError: it has ended in another way.
    """
    engine_id = uow.rollouts.get(rollout_id).engine_id
    engine = uow.engines.get(engine_id, for_update=True)
    rollout = uow.rollouts.get(rollout_id, for_update=True)
    if rollout.state is RolloutState.CANCELLED:
        return rollout
    if rollout.state.is_final:
        raise ConflictError(f"rollout {rollout.id} is {rollout.state}: {rollout.reason}")
    if not rollout_moves.give_way(uow, engine, rollout):
        rollout_moves.end(
            uow,
            engine,
            rollout,
            RolloutState.CANCELLED,
            RolloutReason.CANCELLED,
            "cancelled by hand",
            caller=caller,
        )
    return rollout


def takes_turns(change: Json) -> bool:
    """Whether a change of a dry run can be asked for and taken back within a slice."""
    return KnobClass(change["class"]) in TAKES_TURNS and change["knob"] != REPLICAS


def view(rollout: RolloutRow) -> RolloutView:
    """A rollout as it stands."""
    return RolloutView(**_fields(rollout))


def detail(uow: UnitOfWork, rollout_id: str) -> RolloutDetail:
    """A rollout with the states it has had.

    Raises:
        NotFoundError: no such rollout.
    """
    rollout = uow.rollouts.get(rollout_id)
    return RolloutDetail(
        **_fields(rollout),
        transitions=[
            {"at": event.created_at.isoformat(), **event.data}
            for event in uow.rollouts.list_events_of(rollout_id, "state")
        ],
    )


def _fields(rollout: RolloutRow) -> Json:
    return {
        **{name: getattr(rollout, name) for name in OWN_FIELDS},
        "is_undecided": RolloutReason(rollout.code).is_undecided,
        "candidate": rollout.document,
        "version": rollout.written_version,
        "canary": _canary(rollout),
    }


def _canary(rollout: RolloutRow) -> CanaryView | None:
    if rollout.canary is None:
        return None
    canary, limits = canary_from_json(rollout.canary), limits_from_json(rollout.limits)
    current = canary.under_way
    return CanaryView(
        pairs=len(canary.pairs),
        set_aside=canary.num_set_aside,
        control_attainment=_attainment(canary.pairs, "control"),
        candidate_attainment=_attainment(canary.pairs, "candidate"),
        effect=EffectView.model_validate(canary.effect(limits)),
        arm=None if current is None else current.arm.value,
        exposed_s=canary.exposed_until(canary.seen_s),
        exposed_requests=canary.exposed_requests,
    )


def _attainment(pairs: tuple[Pair, ...], arm: str) -> float | None:
    tallies = [getattr(pair, arm) for pair in pairs]
    judged = sum(t.judged for t in tallies)
    return sum(t.met for t in tallies) / judged if judged else None


def _require_free(uow: UnitOfWork, engine: EngineRow) -> None:
    found = uow.rollouts.find_under_way(engine.id)
    if found is None or rollout_moves.give_way(uow, engine, found):
        return
    raise ApiError(
        409,
        "rollout_under_way",
        f"rollout {found.id} of engine {engine.id} is {found.state}; wait for its end or cancel it",
    )


def _check_candidate(
    uow: UnitOfWork,
    engine: EngineRow,
    before: PolicyDocument,
    after: PolicyDocument,
    caller: Caller,
) -> None:
    by = Authorship(caller=caller, origin="rollout", reason="")
    found = policies.write(uow, engine, before, after, by, is_dry_run=True)
    if before.settings == after.settings:
        raise ApiError(
            409,
            "nothing_to_compare",
            "the candidate's settings are those that the engine is asked for already",
        )
    for change in found.changes:
        if not takes_turns(change):
            kind = change["class"]
            raise ApiError(
                409,
                "not_hot",
                f"{change['knob']} is a change of class {kind}, which cannot take turns with what "
                "runs; patch the policy instead, or leave it out",
                needs=kind,
            )


def _require_ready(engine: EngineRow, after: PolicyDocument, settings: ServiceSettings) -> None:
    if after.sla is None:
        raise ApiError(
            409,
            "no_sla",
            "attainment is what is compared, and the policy has no SLA: add one to the patch, as "
            'in "sla": "p95_ttft_ms<=500"',
        )
    if engine.applied_version != engine.desired_version:
        raise ApiError(
            409, "change_under_way", f"version {engine.desired_version} is not applied yet"
        )
    if not identity.is_alive(engine, settings):
        raise ApiError(409, "engine_silent", f"engine {engine.id} has sent no heartbeat lately")


def _check_weights(cost_model: CostModel, engine: EngineRow) -> None:
    """Refuse step times of weights that are held otherwise than the engine's."""
    if not engine.model:
        return
    held = weights_held(model_from_json(engine.model), policies.inventory_of(engine))
    try:
        StepModel.from_json(cost_model.document, where="cost model").refuse_other(held)
    except TunerError as error:
        raise ApiError(
            409,
            "no_step_times",
            f"{error}; name another with replay.cost_model_id, or skip the replay with "
            "replay.skip (on a command line --cost-model or --skip-replay)",
        ) from error


def _replay(uow: UnitOfWork, engine: EngineRow, asked: ReplayIn) -> Json | None:
    """Where the step times of a replay come from."""
    if asked.skip:
        return None
    if asked.hardware is not None:
        try:
            parse_hardware(asked.hardware)
        except TunerError as error:
            errors = [FieldError(pointer="/replay/hardware", detail=str(error))]
            raise ApiError(422, "invalid_value", str(error), errors=errors) from error
        return {"hardware": asked.hardware}
    cost_model_id, hardware, scale = asked.cost_model_id, None, 1.0
    if cost_model_id is None and engine.recommendation_id is not None:
        found = uow.recommendations.get(engine.recommendation_id)
        tuned_for = effects.job_spec(uow, engine) or {}
        cost_model_id, hardware = found.cost_model_id, field_of(tuned_for, "hardware")
        scale = foreseen_scale(tuned_for, found.document)
    if cost_model_id is not None:
        cost_model = uow.cost_models.get(cost_model_id)
        _check_weights(cost_model, engine)
        return {"cost_model_id": cost_model.id, "step_scale": scale}
    if hardware not in (None, "local"):
        return {"hardware": hardware, "step_scale": scale}
    raise ApiError(
        409,
        "no_step_times",
        "nothing is known to simulate the candidate with: name replay.hardware or "
        "replay.cost_model_id, or skip it with replay.skip (on a command line --hardware, "
        "--cost-model or --skip-replay)",
    )
