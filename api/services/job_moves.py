"""The moves of a tuning job from state to state, whoever makes them; nothing of REST."""

from __future__ import annotations

from store import UnitOfWork
from store.models import JobState, TuningJob
from store.models.base import utc_now

# Jobs created by this run in a command's own process; the worker leaves them alone.
COMMAND_LINE = "command line"


def move(uow: UnitOfWork, job: TuningJob, state: JobState, reason: str, **data: object) -> None:
    """Put a job in another state, stamp its times and tell its followers."""
    job.state, job.reason = state, reason
    if state is JobState.RUNNING and job.started_at is None:
        job.started_at = utc_now()
    if state.is_final:
        job.finished_at = utc_now()
    uow.jobs.append_event(job.id, "state", {"state": state, "reason": reason, **data})


def close_cancelled(uow: UnitOfWork, job: TuningJob) -> None:
    """End a job that was cancelled; its finished trials stay."""
    done = uow.trials.count(job.id)
    move(uow, job, JobState.CANCELLED, f"cancelled; {done} of {job.num_trials} trials kept")
