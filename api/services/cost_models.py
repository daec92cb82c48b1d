"""Cost models: what they say of settings, and how right they have been."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from api.aside.process import AsideError, AsideLimits
from api.documents.places import is_name
from api.documents.uploads import find_upload
from api.schemas.prediction import CalibrationView, MetricCalibration, PredictRequest
from api.services.job_checks import Check, check_workload, require_all, use_upload
from api.web.aside import Aside
from api.web.errors import ApiError, FieldError
from api.web.settings import ServiceSettings
from engine.spec.measurement import Fidelity
from engine.spec.settings import Settings
from policies.calibration import calibrate
from policies.points import Estimate, estimates_from_json
from policies.sla import Sla
from store import Database, UnitOfWork
from store.models.base import Json
from tuner.spec.errors import TunerError
from tuner.step_model.model import StepModel
from tuner.step_model.quality import Quality
from tuner.work.models import find_model
from tuner.workload.spec import WorkloadSpec

LIMITS = AsideLimits(seconds=30.0, memory_mib=2048)
LIVE = (Fidelity.PROBED.value, Fidelity.MEASURED.value)
MOST_TRIALS = 500


@contextmanager
def question_of(
    database: Database, cost_model_id: str, body: PredictRequest, settings: ServiceSettings
) -> Iterator[Json]:
    """What the process that predicts is asked; an uploaded trace lies in a file meanwhile.

    Raises:
        NotFoundError: no such cost model.
        ApiError: 422 naming each field that cannot be read.
    """
    _check(body, settings)
    workload = body.workload
    with NamedTemporaryFile(prefix="gearshift-trace-") as file:
        with database.read() as uow:
            document = uow.cost_models.get(cost_model_id).document
            row = use_upload(uow, workload, "/workload")
            if row is not None and (named := find_upload(workload)) is not None:
                for piece in uow.workloads.read(row.id):
                    file.write(piece)
                file.flush()
                workload = named.at(row.form, Path(file.name))
        yield {
            **body.model_dump(mode="json"),
            "cost_model": document,
            "workload": workload,
            "model_folders": None if _is_known(body.model) else _folders(settings),
        }


async def predict(question: Json, aside: Aside) -> Json:
    """The simulation's document.

    Raises:
        ApiError: 422, it cannot be predicted; 429, too many are predicted already.
    """
    try:
        return await aside.run("predict", question, LIMITS)
    except AsideError as error:
        errors = [FieldError(pointer="", detail=str(error))]
        raise ApiError(422, "cannot_predict", str(error), errors=errors) from error


def calibration(uow: UnitOfWork, cost_model_id: str) -> CalibrationView:
    """Its error on steps it never saw, and on the live trials of jobs that worked with it.

    Raises:
        NotFoundError: no such cost model.
    """
    row = uow.cost_models.get(cost_model_id)
    records = uow.trials.list_newest_of(cost_model_id, limit=MOST_TRIALS)
    live = [record for record in records if record.get("fidelity") in LIVE]
    pairs: dict[str, list[tuple[Estimate, float]]] = defaultdict(list)
    for record in live:
        measured = estimates_from_json(record.get("metrics") or {})
        for key, predicted in estimates_from_json(record.get("predicted") or {}).items():
            if key in measured:
                pairs[key].append((predicted, measured[key].value))
    known = {key: found for key in sorted(pairs) if (found := calibrate(pairs[key])) is not None}
    return CalibrationView(
        cost_model_id=row.id,
        held_out=_held_out(row.document),
        num_trials=len(live),
        metrics=[
            MetricCalibration(
                metric=key,
                num_trials=found.num,
                median_ratio=found.median_ratio,
                p90_off=found.p90_off,
                inside_interval=found.inside_interval,
            )
            for key, found in known.items()
        ],
    )


def _held_out(document: Json) -> dict[str, Any] | None:
    try:
        error = StepModel.from_json(document).error
    except TunerError:
        return None
    return Quality.of(error).to_json() if error.groups else None


def _check(body: PredictRequest, settings: ServiceSettings) -> None:
    checks: list[Check] = [
        ("/model", lambda: _check_model(body.model, settings)),
        ("/settings", lambda: Settings.from_json(body.settings)),
        ("/workload", lambda: _check_workload(body.workload, settings)),
    ]
    if (sla := body.sla) is not None:
        checks.append(("/sla", lambda: Sla.parse(sla)))
    require_all(checks, "this cannot be predicted")


def _check_model(model: str, settings: ServiceSettings) -> None:
    if not _is_known(model):
        settings.places.check_model(model)


def _check_workload(text: str, settings: ServiceSettings) -> None:
    if find_upload(text) is None and WorkloadSpec.parse(text).path is not None:
        raise TunerError("upload the trace (POST /v1/workloads) and name it by its id")
    check_workload(text, settings.places)


def _is_known(model: str) -> bool:
    """Whether it is a name of the catalog."""
    return is_name(model) and find_model(model) is not None


def _folders(settings: ServiceSettings) -> list[str]:
    return [str(folder) for folder in settings.places.models.folders]
