"""The durable workflow around the job runner's steps.

DBOS keeps which steps are done in tables of its own: a SQLite file beside ours, or the schema
``dbos`` of the same PostgreSQL database (docs/decisions/0010-durable-jobs.md). What a job found
lives only in our tables; a step that ran but was not recorded runs again and finds its rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable

import sqlalchemy as sa
import structlog
from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, SetWorkflowID

from api.jobs.runner import JobRunner, JobStep
from api.services.job_moves import COMMAND_LINE
from api.web.settings import ServiceSettings
from store import Database
from store.connections import make_private, read_url
from store.models import TuningJob
from store.outage import is_outage

# Workflows resume only under the version they began with; raise it when the steps' order changes.
WORKFLOW_VERSION = "tuning-1"
QUEUE = "tuning-jobs"
# A job whose trial kills the worker each time must end at last.
MAX_RECOVERIES = 10
POLL_S = 0.5
# A workflow may end a moment before its job's row says so.
GRACE_S = 10.0
DONE = "SUCCESS"
ENDED = (DONE, "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")

# Job id and number of trials in, the last step's result out.
Workflow = Callable[[str, int], str]


class _LeftOpen(BaseException):
    """The workflow engine could not keep a step, which makes its workflow neither done nor failed.

    No Exception, which the engine would keep as the workflow's end.
    """


def define_workflow(runner: JobRunner, underway: set[str]) -> Workflow:
    """Declare the workflow and its steps to DBOS; call once per process, before launch.

    ``underway`` has the jobs whose workflow runs in this process. One that an outage cut is not
    among them, and still open (``identity.py`` has it run again).
    """

    @DBOS.step(name="begin")
    def begin(job_id: str) -> str:
        return runner.begin(job_id)

    @DBOS.step(name="trial")
    def trial(job_id: str, number: int) -> str:
        return runner.trial(job_id, number)

    @DBOS.step(name="finish")
    def finish(job_id: str) -> str:
        return runner.finish(job_id)

    def steps(job_id: str, num_trials: int) -> str:
        if begin(job_id) == JobStep.STOP:
            return finish(job_id)
        for number in range(num_trials):
            if trial(job_id, number) == JobStep.STOP:
                break
        return finish(job_id)

    @DBOS.workflow(name="tune", max_recovery_attempts=MAX_RECOVERIES)
    def tune(job_id: str, num_trials: int) -> str:
        underway.add(job_id)
        try:
            return steps(job_id, num_trials)
        except sa.exc.SQLAlchemyError as error:
            if is_outage(error):
                raise _LeftOpen(str(error)) from error
            raise
        finally:
            underway.discard(job_id)

    return tune


def configure(settings: ServiceSettings, worker: str) -> DBOSConfig:
    """The workflow engine's configuration: JSON instead of pickle, a version of our own.

    Its SQLite file is made here, to be its owner's alone.
    """
    url = read_url(settings.effective_jobs_database_url)
    if url.get_backend_name() == "sqlite" and url.database:
        make_private(url.database)
    return DBOSConfig(
        name="gearshift",
        system_database_url=settings.effective_jobs_database_url,
        application_version=WORKFLOW_VERSION,
        executor_id=worker,
        serializer=DBOSPortableJSONSerializer(),
        console_log_level="WARNING",
        log_level="WARNING",
        notification_listener_polling_interval_sec=0.2,
    )


def due_jobs(open_jobs: Iterable[TuningJob], *, handed: Container[str]) -> list[TuningJob]:
    """Those of the open jobs that a worker should have by now, besides those it was ``handed``.

    A command runs its own. One that drift asked for waits until nobody's own job is open.
    """
    ours = [job for job in open_jobs if job.created_by != COMMAND_LINE]
    is_asked_for = any(job.retune_key is None for job in ours)
    return [job for job in ours if job.retune_key is None or job.id in handed or not is_asked_for]


class Dispatcher:
    """Hands open jobs of the database to the workflow engine; a job's id is its workflow's."""

    def __init__(self, database: Database, runner: JobRunner, workflow: Workflow) -> None:
        self._database = database
        self._runner = runner
        self._workflow = workflow
        self._handed: dict[str, float] = {}
        self._log = structlog.get_logger("api.jobs")

    def look(self) -> None:
        """Hand over new jobs, and close those whose workflow ended without closing them."""
        with self._database.read() as uow:
            due = due_jobs(uow.jobs.list_open(), handed=self._handed)
            open_jobs = {job.id: job.num_trials for job in due}
        for job_id, num_trials in open_jobs.items():
            if job_id not in self._handed:
                self._forget_if_done(job_id)
                with SetWorkflowID(job_id):
                    DBOS.enqueue_workflow(QUEUE, self._workflow, job_id, num_trials)
                self._handed[job_id] = time.monotonic()
            elif time.monotonic() - self._handed[job_id] > GRACE_S:
                self._close_if_ended(job_id)
        for job_id in [job_id for job_id in self._handed if job_id not in open_jobs]:
            del self._handed[job_id]

    def _forget_if_done(self, job_id: str) -> None:
        """Let a job run again that is open although its workflow has done all: a workflow ends
        after its job, so our tables are older, as from a backup."""
        status = DBOS.get_workflow_status(job_id)
        if status is None or status.status != DONE:
            return
        with self._database.read() as uow:
            job = uow.jobs.find(job_id)
        if job is not None and not job.state.is_final:
            self._log.warning("job is open, and its workflow is done: run again", job=job_id)
            DBOS.delete_workflow(job_id)

    def _close_if_ended(self, job_id: str) -> None:
        status = DBOS.get_workflow_status(job_id)
        if status is not None and status.status in ENDED:
            self._runner.fail(job_id, f"the job's workflow ended as {status.status}")
