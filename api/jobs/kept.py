"""A tuning job of the command line: run in the command's own process, kept as its trials end.

It is a row beside the jobs of the service, with the same trials, and may be resumed after Ctrl-C,
a crash or a power cut. The service shows it and does not run it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from api.documents.tuning_spec import job_document, tuning_spec
from api.jobs.keeping import close, keep_cost_model, keep_groundwork, keep_trial
from api.jobs.tuner_backend import groundwork_of, plain, verdict_of
from api.services.job_moves import COMMAND_LINE, close_cancelled, move
from store import ConflictError, Database, NotFoundError, UnitOfWork
from store.locks import NamedLock
from store.models import JobState, TuningJob
from tuner.search.context import TuningContext
from tuner.search.costs import NOTHING_SPENT, Spent
from tuner.search.report import TuningReport
from tuner.search.spec import TuningSpec
from tuner.search.trials import TrialRecord

LAST = "last"
# A job that a crash left behind still counts as running, or as cancelling, where an earlier version
# was asked to cancel it.
RESUMABLE = (JobState.RUNNING, JobState.CANCELLING, JobState.CANCELLED, JobState.FAILED)
# How often a command looks whether its job was cancelled elsewhere.
LOOK_EVERY_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What the database has of a job: enough to go on with it."""

    job_id: str
    spec: TuningSpec
    cost_model: dict[str, Any] | None
    groundwork: dict[str, Any] | None
    trials: tuple[TrialRecord, ...]
    spent: Spent = NOTHING_SPENT


def find_kept(database: Database, word: str) -> Kept:
    """The job named by its id, or the newest unfinished one (``last``).

    Raises:
        NotFoundError: no such job, or none of the command line that is unfinished.
        ConflictError: a job that is finished, or one of the service.
    """
    with database.read() as uow:
        if word == LAST:
            job = uow.jobs.find_newest(created_by=COMMAND_LINE, states=RESUMABLE)
            if job is None:
                raise NotFoundError("unfinished tuning job", word)
        else:
            job = uow.jobs.get(word)
        if job.created_by != COMMAND_LINE:
            raise ConflictError(f"tuning job {job.id} is run by the service, not by this command")
        if job.state not in RESUMABLE:
            raise ConflictError(f"tuning job {job.id} is {job.state}: there is nothing to resume")
        model_id = job.cost_model_id
        return Kept(
            job_id=job.id,
            spec=tuning_spec(job.spec),
            cost_model=None if model_id is None else uow.cost_models.get(model_id).document,
            groundwork=uow.groundworks.find(job.id),
            trials=tuple(TrialRecord.from_json(r) for r in uow.trials.list_records(job.id)),
            spent=uow.jobs.spent(job.id),
        )


class Keeper:
    """Keeps one job; without a database it keeps nothing."""

    def __init__(self, database: Database | None, job_id: str | None = None) -> None:
        """Raises ConflictError where another command works on the job now."""
        self._database = database
        self.job_id = job_id
        self.recommendation_id: str | None = None
        self._context: TuningContext | None = None
        self._is_cancelled = False
        self._next_look_s = 0.0
        self._lock: NamedLock | None = None
        if database is not None and job_id is not None:
            self._hold(database, job_id)

    def close(self) -> None:
        """Let other commands go on with the job. Safe to call twice."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def begin(self, context: TuningContext) -> None:
        """Add the job, or go on with it; what its trials rest on is kept with each of them."""
        spec, cost_model = context.spec, context.cost_model
        self._context = context
        if self._database is None:
            return
        with self._database.begin() as uow:
            if self.job_id is None:
                job = uow.jobs.add(
                    spec=job_document(spec), num_trials=spec.trials, created_by=COMMAND_LINE
                )
                self.job_id = job.id
                self._hold(self._database, job.id)
            else:
                job = uow.jobs.get(self.job_id, for_update=True)
                job.spec, job.num_trials = job_document(spec), spec.trials
            if cost_model is not None and job.cost_model_id is None:
                keep_cost_model(uow, job, plain(cost_model.to_json()), by=COMMAND_LINE)
            move(uow, job, JobState.RUNNING, "run by gearshift tune")

    def is_cancelled(self) -> bool:
        """Whether somebody else ended the job meanwhile, as by the dashboard."""
        if self._database is None or self.job_id is None or self._is_cancelled:
            return self._is_cancelled
        if time.monotonic() >= self._next_look_s:
            self._next_look_s = time.monotonic() + LOOK_EVERY_S
            with self._database.read() as uow:
                job = uow.jobs.find(self.job_id)
            self._is_cancelled = job is None or job.state is not JobState.RUNNING
        return self._is_cancelled

    def keep(self, trial: dict[str, Any]) -> None:
        """Keep a trial record."""
        with self._held() as held:
            if held is not None:
                uow, job = held
                groundwork = None if self._context is None else groundwork_of(self._context)
                keep_trial(uow, job.id, plain(trial))
                if groundwork is not None:
                    keep_groundwork(uow, job.id, groundwork)

    def tell(self, kind: str, data: dict[str, Any]) -> None:
        """Keep an event of the job."""
        with self._held() as held:
            if held is not None:
                uow, job = held
                uow.jobs.append_event(job.id, kind, plain(data))

    def end(self, report: TuningReport, *, is_interrupted: bool) -> None:
        """Keep the answer; after an interruption only that the job waits to be resumed. One that
        was ended elsewhere stays as it is."""
        with self._held() as held:
            if held is None or held[1].state.is_final:
                return
            uow, job = held
            if is_interrupted:
                close_cancelled(uow, job)
            else:
                close(uow, job, verdict_of(report))
                found = uow.recommendations.find_for_job(job.id)
                self.recommendation_id = None if found is None else found.id

    def fail(self, reason: str) -> None:
        """Keep why the job ended without an answer."""
        with self._held() as held:
            if held is not None and not held[1].state.is_final:
                uow, job = held
                move(uow, job, JobState.FAILED, reason)

    @contextmanager
    def _held(self) -> Iterator[tuple[UnitOfWork, TuningJob] | None]:
        """The job in a unit of work; None where none is kept, or where somebody removed it."""
        if self._database is None or self.job_id is None:
            yield None
            return
        with self._database.begin() as uow:
            job = uow.jobs.find(self.job_id, for_update=True)
            if job is None:
                self.job_id, self._is_cancelled = None, True
            yield None if job is None else (uow, job)

    def _hold(self, database: Database, job_id: str) -> None:
        lock = database.lock(f"tune-{job_id}")
        if not lock.try_take():
            raise ConflictError(
                f"tuning job {job_id} is worked on by another command now; wait for its end, or "
                "press Ctrl-C there"
            )
        self._lock = lock

    @property
    def resume_command(self) -> str | None:
        """What goes on with the job, None where it is not kept."""
        return None if self.job_id is None else f"gearshift tune --resume {self.job_id}"
