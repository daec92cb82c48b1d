"""Tuning jobs: create, cancel, remove, and the moves of their state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from api.documents.places import Places, is_name
from api.documents.tuning_spec import tuning_spec
from api.documents.uploads import find_upload
from api.schemas.tuning import TuningJobCreate, TuningJobView
from api.services.audit import record
from api.web.auth import Caller
from api.web.errors import ApiError, FieldError
from api.web.settings import ServiceSettings
from api.web.settings import num_devices as inventory_size
from engine.spec.errors import EngineError
from engine.spec.inventory import LEAST_CPU_RANKS
from policies.errors import PolicyInputError
from policies.sla import Sla
from store import ConflictError, UnitOfWork
from store.models import JobState, TuningJob
from store.models.base import Json, utc_now
from tuner.backends import load_backend
from tuner.described.parse import backend_of
from tuner.hardware import parse_hardware
from tuner.search.spec import LOCAL, check_dtype
from tuner.spec.errors import TunerError
from tuner.work.models import find_model, load_model
from tuner.workload.parse import check_workload
from tuner.workload.spec import WorkloadSpec


def create(
    uow: UnitOfWork, body: TuningJobCreate, settings: ServiceSettings, *, caller: Caller
) -> TuningJob:
    """Queue a job.

    Raises:
        ApiError: 422 naming each field: an SLA or workload that does not parse, a path outside
            the folders of models and traces.
        NotFoundError: no such cost model.
    """
    _check(body, settings)
    upload = _use_upload(uow, body)
    if body.cost_model_id is not None:
        uow.cost_models.get(body.cost_model_id)
    job = uow.jobs.add(spec=_document(body), num_trials=body.trials, created_by=caller.actor)
    job.cost_model_id, job.workload_id = body.cost_model_id, upload
    uow.jobs.append_event(job.id, "state", {"state": JobState.QUEUED, "reason": job.reason})
    record(uow, caller, "job.create", f"tuning-jobs/{job.id}", reason=body.sla, after=job.spec)
    return job


def view(uow: UnitOfWork, job: TuningJob) -> TuningJobView:
    """A job with how far it is and what it led to."""
    recommendation = uow.recommendations.find_for_job(job.id)
    own = ("trials_done", "recommendation_id")
    fields = {name: getattr(job, name) for name in TuningJobView.model_fields if name not in own}
    return TuningJobView(
        **fields,
        trials_done=uow.trials.count(job.id),
        recommendation_id=None if recommendation is None else recommendation.id,
    )


def cancel(uow: UnitOfWork, job_id: str, *, caller: Caller) -> TuningJob:
    """Ask a job to stop after its running trial; what is finished stays.

    A job that has not begun is cancelled at once; cancelling twice is the same as once.

    Raises:
        ConflictError: the job is finished.
    """
    job = uow.jobs.get(job_id, for_update=True)
    match job.state:
        case JobState.CANCELLING | JobState.CANCELLED:
            return job
        case JobState.QUEUED:
            move(uow, job, JobState.CANCELLED, "cancelled before it began")
        case JobState.RUNNING:
            move(uow, job, JobState.CANCELLING, "stops after the running trial")
        case _:
            raise ConflictError(f"tuning job {job.id} is {job.state}; only a running one can stop")
    record(uow, caller, "job.cancel", f"tuning-jobs/{job.id}", reason=job.reason)
    return job


def delete(uow: UnitOfWork, job_id: str, *, caller: Caller) -> None:
    """Remove a finished job with its trials and events.

    Raises:
        ConflictError: the job is not finished.
    """
    job = uow.jobs.get(job_id, for_update=True)
    if not job.state.is_final:
        raise ConflictError(f"tuning job {job.id} is {job.state}; cancel it first")
    uow.jobs.delete(job)
    record(uow, caller, "job.delete", f"tuning-jobs/{job.id}", reason="", before=job.spec)


def move(uow: UnitOfWork, job: TuningJob, state: JobState, reason: str, **data: object) -> None:
    """Put a job in another state, stamp its times and tell its followers."""
    job.state, job.reason = state, reason
    if state is JobState.RUNNING and job.started_at is None:
        job.started_at = utc_now()
    if state.is_final:
        job.finished_at = utc_now()
    uow.jobs.append_event(job.id, "state", {"state": state, "reason": reason, **data})


def report(uow: UnitOfWork, job_id: str) -> Json:
    """The tuner's answer.

    Raises:
        ConflictError: the job has none (yet).
    """
    job = uow.jobs.get(job_id)
    if job.report is None:
        raise ConflictError(f"tuning job {job.id} is {job.state} and has no report")
    return job.report


def _document(body: TuningJobCreate) -> Json:
    """The job as it is kept: a later default changes nothing for it."""
    hardware = body.options.get("hardware", body.hardware)
    backend = body.backend if hardware == LOCAL else backend_of(body.backend)
    return {**body.model_dump(mode="json"), "backend": backend}


def _check(body: TuningJobCreate, settings: ServiceSettings) -> None:
    """Find what would make the job fail at once, while the caller still listens.

    Nothing is built here, and no path is looked at: files are read in the job's own process.
    """
    checks: list[tuple[str, Callable[[], object]]] = [
        ("/sla", lambda: Sla.parse(body.sla)),
        ("/model_dir", lambda: _check_model(body.model_dir, body.hardware, settings.places)),
        ("/workload", lambda: _check_workload(body.workload, settings.places)),
        ("/hardware", lambda: _check_hardware(body.hardware, body.num_devices)),
        ("/num_devices", lambda: _check_here(body.hardware, body.num_devices, settings)),
        ("/backend", lambda: _check_backend(body.backend, body.hardware)),
        ("/dtype", lambda: check_dtype(body.dtype)),
    ]
    errors = [found for pointer, check in checks if (found := _find_error(pointer, check))]
    if not errors and (found := _find_error("/options", lambda: _check_options(body, settings))):
        errors.append(found)
    if errors:
        raise ApiError(422, "invalid_request", "the job could not run", errors=errors)


def _check_options(body: TuningJobCreate, settings: ServiceSettings) -> None:
    """The whole specification: options may name fields that stand beside them, too."""
    spec = tuning_spec(_document(body))
    _check_workload(spec.workload, settings.places)
    _check_hardware(spec.hardware, spec.num_devices)
    _check_here(spec.hardware, spec.num_devices, settings)
    _check_model(spec.model_dir, spec.hardware, settings.places)
    if not spec.is_local and is_name(spec.model_dir):
        spec.node()


def _check_model(model: str, hardware: str, places: Places) -> None:
    """The path of a folder, which is not looked into; on described hardware also a name."""
    if hardware != LOCAL and is_name(model):
        load_model(model)
    elif is_name(model) and find_model(model) is not None:
        raise TunerError(
            f"model {model!r} is a name for described hardware, as in 8xh200; here an engine "
            f"starts from a folder (./{model} if it is one)"
        )
    else:
        places.check_model(model)


def _check_workload(text: str, places: Places) -> None:
    """A SPEC; of a trace the path, which is not looked at; an uploaded one is looked up later."""
    if find_upload(text) is not None:
        return
    places.check_workload(text)
    if WorkloadSpec.parse(text).path is None:
        check_workload(text)


def _use_upload(uow: UnitOfWork, body: TuningJobCreate) -> str | None:
    """The uploaded workload that the job names, kept from being removed meanwhile.

    Raises:
        ApiError: 422, there is none, or it does not take the options after its id.
    """
    in_options = "workload" in body.options
    named = find_upload(body.options["workload"] if in_options else body.workload)
    if named is None:
        return None
    row = uow.workloads.find(named.workload_id, for_use=True)

    def check() -> None:
        if row is None:
            raise TunerError(f"workload {named.workload_id} does not exist")
        named.at(row.form, Path(row.id))

    if (found := _find_error("/options" if in_options else "/workload", check)) is not None:
        raise ApiError(422, "invalid_request", "the job could not run", errors=[found])
    return named.workload_id


def _check_hardware(hardware: str, num_devices: int) -> None:
    if hardware == LOCAL:
        return
    described = parse_hardware(hardware)
    if num_devices > described.count:
        raise TunerError(f"{num_devices} devices asked for, {described} has {described.count}")


def _check_here(hardware: str, num_devices: int, settings: ServiceSettings) -> None:
    """On this machine, a plan may use its devices; ranks of a CPU may be a few more than cores."""
    most = max(inventory_size(settings), LEAST_CPU_RANKS)
    if hardware == LOCAL and num_devices > most:
        raise TunerError(
            f"{num_devices} devices asked for, plans on this machine may use {most}; describe "
            "other hardware, as in 8xh200"
        )


def _check_backend(backend: str | None, hardware: str) -> None:
    if backend is None:
        return
    load_backend(backend)
    if hardware == LOCAL:
        raise TunerError(
            f"backend {backend!r} is for described hardware: add hardware, as in 8xh200"
        )


def _find_error(pointer: str, check: Callable[[], object]) -> FieldError | None:
    try:
        check()
    except (EngineError, PolicyInputError, TunerError) as error:
        return FieldError(pointer=pointer, detail=str(error))
    return None
