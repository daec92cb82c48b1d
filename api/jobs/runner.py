"""The steps of a tuning job. Each may be run again after a crash and does nothing twice."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from enum import StrEnum

import structlog

from api.jobs.backend import (
    JobInputError,
    JobStoppedError,
    Json,
    OnEvent,
    PreparedJob,
    TuningBackend,
)
from api.jobs.keeping import (
    close,
    keep_cost_model,
    keep_groundwork,
    keep_trial,
)
from api.jobs.leases import DeviceLeases
from api.schemas.tuning import OnBusy
from api.services.job_moves import close_cancelled, move
from store import ConflictError, Database, UnitOfWork
from store.models import CostModel, JobState, TuningJob
from store.outage import Patience, is_outage

WORKER = "worker"
SIMULATED_NOTE = (
    "no device was free (held by serving engines or other jobs): every number comes from simulation"
)


class JobStep(StrEnum):
    """What a step tells the workflow. The workflow keeps it, so it must stay true."""

    GO_ON = "go_on"
    STOP = "stop"


class JobRunner:
    """Runs the steps of jobs against the database; knows nothing of the workflow engine.

    While the database is away a step waits. What a trial found is kept once it is back; a step
    that was cut elsewhere runs again.

    Prepared jobs are kept in memory only: after a restart a step prepares again, from the cost
    model and the groundwork that were kept before.
    """

    def __init__(
        self,
        database: Database,
        backend: TuningBackend,
        leases: DeviceLeases,
        patience: Patience,
    ) -> None:
        self._database = database
        self._patience = patience
        self._backend = backend
        self._leases = leases
        self._prepared: dict[str, PreparedJob] = {}
        # Jobs that found no device free and are answered from simulation.
        self._waived: set[str] = set()
        self._log = structlog.get_logger("api.jobs")

    def begin(self, job_id: str) -> JobStep:
        """Take the job up and prepare it."""
        return self._patience.run(lambda: self._take_up(job_id))

    def trial(self, job_id: str, number: int) -> JobStep:
        """Run trial ``number`` unless it is there already; a cancelled job stops here."""
        return self._patience.run(lambda: self._trial_if_missing(job_id, number))

    def finish(self, job_id: str) -> JobStep:
        """Recommend, or close a cancelled job; either way the job is finished afterwards."""
        return self._patience.run(lambda: self._close(job_id))

    def fail(self, job_id: str, reason: str) -> None:
        """Close a job that cannot go on; finished trials stay."""
        self._patience.run(lambda: self._fail(job_id, reason))

    def _take_up(self, job_id: str) -> JobStep:
        with self._database.begin() as uow:
            job = uow.jobs.find(job_id, for_update=True)
            if job is None or job.state not in (JobState.QUEUED, JobState.RUNNING):
                return JobStep.STOP
            if job.state is JobState.QUEUED:
                move(uow, job, JobState.RUNNING, "a worker took it up")
        return self._guarded(job_id, lambda: self._begin(job_id))

    def _trial_if_missing(self, job_id: str, number: int) -> JobStep:
        with self._database.read() as uow:
            job = uow.jobs.find(job_id)
            if job is None or job.state is not JobState.RUNNING:
                return JobStep.STOP
            if uow.trials.find(job_id, number) is not None:
                return JobStep.GO_ON
        return self._guarded(job_id, lambda: self._run_trial(job_id, number))

    def _close(self, job_id: str) -> JobStep:
        try:
            if self._is_open(job_id):
                self._guarded(job_id, lambda: self._recommend(job_id))
                self._is_open(job_id)  # it may have been cancelled while it was prepared again
            return JobStep.STOP
        finally:
            self._forget(job_id)

    def _is_open(self, job_id: str) -> bool:
        """Whether there is something to finish; a job that was cancelled is closed as such."""
        with self._database.begin() as uow:
            job = uow.jobs.find(job_id, for_update=True)
            if job is not None and job.state is JobState.CANCELLING:
                _give_up(uow, job)
            return job is not None and not job.state.is_final

    def _fail(self, job_id: str, reason: str) -> None:
        self._forget(job_id)
        with self._database.begin() as uow:
            job = uow.jobs.find(job_id, for_update=True)
            if job is not None and not job.state.is_final:
                uow.groundworks.drop(job.id)
                move(uow, job, JobState.FAILED, reason)

    def _guarded(self, job_id: str, step: Callable[[], JobStep]) -> JobStep:
        """Turn whatever goes wrong into a failed job with a reason a person can read."""
        try:
            return step()
        except JobStoppedError:
            self._log.info("job stopped while it waited or was prepared", job=job_id)
        except JobInputError as error:
            self.fail(job_id, str(error))
        except Exception as error:
            if is_outage(error):
                raise  # the step runs again when the database is back
            self._log.exception("job failed", job=job_id)
            last = traceback.extract_tb(error.__traceback__)[-1]
            self.fail(job_id, f"internal error: {type(error).__name__}: {error} ({last.name})")
        return JobStep.STOP

    def _begin(self, job_id: str) -> JobStep:
        self._prepare(job_id)
        return JobStep.GO_ON

    def _run_trial(self, job_id: str, number: int) -> JobStep:
        prepared = self._prepare(job_id)
        with self._database.read() as uow:
            done = uow.trials.list_records(job_id)
        record = prepared.run_trial(number, done, self._is_cancelled(job_id))
        groundwork = prepared.new_groundwork()
        if self._is_cancelled(job_id)():
            return JobStep.STOP  # it may have been cut short: only finished trials count
        try:
            self._patience.run(lambda: self._keep_trial(job_id, record, groundwork))
        except ConflictError:
            # Another process ran the same trial; its row came first and is the truth.
            self._log.warning("trial was there already", job=job_id, number=number)
        return JobStep.GO_ON

    def _recommend(self, job_id: str) -> JobStep:
        prepared = self._prepare(job_id)
        with self._database.read() as uow:
            trials = uow.trials.list_records(job_id)
            spent = uow.jobs.spent(job_id)
        verdict = prepared.recommend(trials, self._is_cancelled(job_id), spent)
        with self._database.begin() as uow:
            job = uow.jobs.get(job_id, for_update=True)
            if job.state is JobState.CANCELLING:
                _give_up(uow, job)
            elif not job.state.is_final:
                notes = [SIMULATED_NOTE] if job.id in self._waived else []
                close(uow, job, verdict, notes=notes)
        return JobStep.STOP

    def _prepare(self, job_id: str) -> PreparedJob:
        """The job in memory, with its devices leased and what it measured on the way kept."""
        with self._database.read() as uow:
            job = uow.jobs.get(job_id)
        devices = self._devices(job)
        if job_id in self._prepared:
            return self._prepared[job_id]
        with self._database.read() as uow:
            job = uow.jobs.get(job_id)  # by now it may have a cost model
            groundwork = uow.groundworks.find(job_id)
        cost_model = self._cost_model(job)
        prepared = self._backend.prepare(
            self._backend.without_devices(job.spec) if job_id in self._waived else job.spec,
            cost_model=cost_model,
            groundwork=groundwork,
            devices=devices,
            on_event=self._on_event(job_id),
            is_cancelled=self._is_cancelled(job_id),
        )
        # It may have taken minutes: an outage here must not make it anew.
        if cost_model is None and (measured := prepared.cost_model) is not None:
            self._patience.run(lambda: self._keep_cost_model(job_id, measured))
        if (found := prepared.new_groundwork()) is not None:
            self._patience.run(lambda: self._keep_groundwork(job_id, found))
        self._prepared[job_id] = prepared
        return prepared

    def _devices(self, job: TuningJob) -> tuple[int, ...]:
        """Lease what live trials need; if too few are free, simulate jobs that allow it."""
        needed = self._backend.devices_needed(job.spec)
        if not needed or job.id in self._waived:
            return ()
        may_give_up = (
            job.spec.get("on_busy") == OnBusy.SIMULATE
            and job.id not in self._prepared
            and self._cost_model(job, or_newest=True) is not None
        )
        devices = self._leases.find(
            job.id,
            needed,
            first=self._backend.first_device(job.spec),
            is_cancelled=self._is_cancelled(job.id),
            may_give_up=may_give_up,
        )
        if devices is None:
            self._waived.add(job.id)
            self._patience.run(lambda: self._take_newest_model(job.id))
            self._on_event(job.id)("simulating", {"message": SIMULATED_NOTE})
            return ()
        return devices

    def _cost_model(self, job: TuningJob, *, or_newest: bool = False) -> Json | None:
        """The job's cost model, or the newest of this hardware that it may take."""
        with self._database.read() as uow:
            if job.cost_model_id is not None:
                return uow.cost_models.get(job.cost_model_id).document
            if not or_newest:
                return None
            newest = self._newest_model(uow, job)
            return None if newest is None else newest.document

    def _newest_model(self, uow: UnitOfWork, job: TuningJob) -> CostModel | None:
        """The newest of this hardware and of weights that are held as the job's are."""
        weights = self._backend.weights(job.spec)
        return uow.cost_models.find_newest(self._backend.fingerprint(job.spec), weights=weights)

    def _take_newest_model(self, job_id: str) -> None:
        """A job without devices has the newest cost model from now on, also after a restart; and
        whoever reads its answer knows by which."""
        with self._database.begin() as uow:
            job = uow.jobs.get(job_id, for_update=True)
            if job.cost_model_id is None:
                newest = self._newest_model(uow, job)
                job.cost_model_id = None if newest is None else newest.id

    def _keep_trial(self, job_id: str, record: Json, groundwork: Json | None) -> None:
        with self._database.begin() as uow:
            keep_trial(uow, job_id, record)
            if groundwork is not None:
                keep_groundwork(uow, job_id, groundwork)

    def _keep_groundwork(self, job_id: str, document: Json) -> None:
        with self._database.begin() as uow:
            keep_groundwork(uow, job_id, document)

    def _keep_cost_model(self, job_id: str, document: Json) -> None:
        with self._database.begin() as uow:
            keep_cost_model(uow, uow.jobs.get(job_id, for_update=True), document, by=WORKER)

    def _forget(self, job_id: str) -> None:
        """Free what the job holds here."""
        if (prepared := self._prepared.pop(job_id, None)) is not None:
            prepared.close()
        self._waived.discard(job_id)
        self._leases.release(job_id)

    def _is_cancelled(self, job_id: str) -> Callable[[], bool]:
        def look() -> bool:
            self._leases.keep(job_id)  # asked again and again, it tells that the work goes on
            with self._database.read() as uow:
                job = uow.jobs.find(job_id)
                return job is None or job.state is not JobState.RUNNING

        return lambda: self._patience.run(look)

    def _on_event(self, job_id: str) -> OnEvent:
        def keep(event_type: str, data: Json) -> None:
            with self._database.begin() as uow:
                uow.jobs.append_event(job_id, event_type, data)

        return lambda event_type, data: self._patience.run(lambda: keep(event_type, data))


def _give_up(uow: UnitOfWork, job: TuningJob) -> None:
    """End a job that was cancelled; the service resumes none of these."""
    uow.groundworks.drop(job.id)
    close_cancelled(uow, job)
