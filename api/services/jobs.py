"""Tuning jobs: create, cancel, remove, report."""

from __future__ import annotations

from collections.abc import Sequence

from api.aside.process import AsideError, AsideLimits
from api.documents.tuning_spec import field_of
from api.schemas.tuning import TuningJobCreate, TuningJobView
from api.services.audit import record
from api.services.job_checks import check_job, job_spec, use_upload
from api.services.job_moves import COMMAND_LINE, close_cancelled, move
from api.web.aside import Aside
from api.web.auth import Caller
from api.web.errors import ApiError
from api.web.settings import ServiceSettings
from store import ConflictError, UnitOfWork
from store.models import JobState, TuningJob
from store.models.base import Json

# Pictures of a report take long.
REPORT_LIMITS = AsideLimits(seconds=30.0, memory_mib=2048)
KEPT_FIELDS = set(TuningJobView.model_fields) - {"trials_done", "recommendation_id"}


def create(
    uow: UnitOfWork, body: TuningJobCreate, settings: ServiceSettings, *, caller: Caller
) -> TuningJob:
    """Queue a job.

    Raises:
        ApiError: 422 naming each field: an SLA or workload that does not parse, a path outside
            the folders of models and traces.
        NotFoundError: no such cost model.
    """
    check_job(body, settings)
    in_options = "workload" in body.options
    upload = use_upload(
        uow,
        body.options["workload"] if in_options else body.workload,
        "/options" if in_options else body.pointer("workload"),
    )
    if body.cost_model_id is not None:
        uow.cost_models.get(body.cost_model_id)
    spec = job_spec(body)
    num_trials = field_of(spec, "trials")
    job = uow.jobs.add(spec=spec, num_trials=num_trials, created_by=caller.actor)
    job.cost_model_id = body.cost_model_id
    job.workload_id = None if upload is None else upload.id
    uow.jobs.append_event(job.id, "state", {"state": JobState.QUEUED, "reason": job.reason})
    record(uow, caller, "job.create", f"tuning-jobs/{job.id}", reason=body.sla, after=job.spec)
    return job


def view(uow: UnitOfWork, job: TuningJob) -> TuningJobView:
    """A job with how far it is and what it led to."""
    return views(uow, [job])[0]


def views(uow: UnitOfWork, jobs: Sequence[TuningJob]) -> list[TuningJobView]:
    """Jobs, each as in :func:`view`, with two queries for all."""
    job_ids = [job.id for job in jobs]
    trials_done = uow.trials.counts(job_ids)
    # Jobs of earlier versions that found nothing have one, too, which is empty.
    met = [job.id for job in jobs if job.state is not JobState.INFEASIBLE]
    recommendation_ids = uow.recommendations.ids_for_jobs(met)
    return [
        TuningJobView(
            **{name: getattr(job, name) for name in KEPT_FIELDS},
            trials_done=trials_done.get(job.id, 0),
            recommendation_id=recommendation_ids.get(job.id),
        )
        for job in jobs
    ]


def cancel(uow: UnitOfWork, job_id: str, *, caller: Caller) -> TuningJob:
    """Ask a job to stop; trials that are finished stay.

    A job that has not begun is cancelled at once, and so is one that a command runs: it looks for
    that, where it still lives. Cancelling twice is the same as once.

    Raises:
        ConflictError: the job is finished.
    """
    job = uow.jobs.get(job_id, for_update=True)
    match job.state:
        case JobState.RUNNING | JobState.CANCELLING if job.created_by == COMMAND_LINE:
            close_cancelled(uow, job)
        case JobState.CANCELLING | JobState.CANCELLED:
            return job
        case JobState.QUEUED:
            move(uow, job, JobState.CANCELLED, "cancelled before it began")
        case JobState.RUNNING:
            move(uow, job, JobState.CANCELLING, "stops as soon as it can")
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


def report(uow: UnitOfWork, job_id: str) -> Json:
    """The tuner's answer.

    Raises:
        ConflictError: the job has none (yet).
    """
    job = uow.jobs.get(job_id)
    if job.report is None:
        raise ConflictError(f"tuning job {job.id} is {job.state} and has no report")
    return job.report


async def told_report(document: Json, form: str, aside: Aside) -> str:
    """A job's report as Markdown or as an HTML page (``form``).

    Raises:
        ApiError: 409, it cannot be written; 429, too many are written already.
    """
    try:
        answer = await aside.run("tell_report", {"report": document, "form": form}, REPORT_LIMITS)
    except AsideError as error:
        raise ApiError(409, "cannot_draw", f"the report cannot be drawn: {error}") from error
    text: str = answer["text"]
    return text
