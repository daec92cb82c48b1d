"""What a tuning job leaves in the database, whoever runs it: the worker, or a command."""

from __future__ import annotations

from collections.abc import Sequence

from api.jobs.backend import Verdict
from api.services.job_moves import move
from store import UnitOfWork
from store.models import JobState, TuningJob
from store.models.base import Json


def keep_trial(uow: UnitOfWork, job_id: str, record: Json) -> None:
    """Keep a finished trial and tell the job's followers.

    Raises:
        ConflictError: the job already has a trial of this number.
    """
    uow.trials.add(job_id, record)
    line = {name: value for name, value in record.items() if name != "document"}
    uow.jobs.append_event(job_id, "trial", line)


def keep_groundwork(uow: UnitOfWork, job_id: str, document: Json) -> None:
    """Keep what the trials of a job that is open rest on, until it is answered or given up."""
    job = uow.jobs.find(job_id, for_update=True)
    if job is not None and not job.state.is_final:
        uow.groundworks.put(job_id, document)


def keep_cost_model(uow: UnitOfWork, job: TuningJob, document: Json, *, by: str) -> None:
    """Keep the step model that the job works with, so that it can be resumed from it."""
    row = uow.cost_models.add(
        fingerprint=str(document.get("fingerprint") or "unknown"),
        document=document,
        created_by=by,
    )
    job.cost_model_id = row.id
    uow.jobs.append_event(job.id, "cost_model", {"cost_model_id": row.id})


def close(uow: UnitOfWork, job: TuningJob, verdict: Verdict, *, notes: Sequence[str] = ()) -> None:
    """Keep the tuner's answer, and end the job."""
    uow.groundworks.drop(job.id)
    warnings = [*verdict.warnings, *notes]
    job.report = {**verdict.report, "warnings": warnings} if warnings else verdict.report
    if verdict.recommendation is None:
        # What comes nearest stands in the report.
        move(uow, job, JobState.INFEASIBLE, verdict.reason)
        return
    row = uow.recommendations.add(
        job_id=job.id,
        cost_model_id=job.cost_model_id,
        sla=verdict.sla,
        document=verdict.recommendation,
        schedule=verdict.schedule,
        warnings=warnings,
    )
    move(uow, job, JobState.SUCCEEDED, verdict.reason, recommendation_id=row.id)
