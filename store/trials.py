"""Trials of tuning jobs: the only truth about what was tried."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from engine.spec.measurement import METRIC_IDS
from store.errors import ConflictError
from store.models import MeasurementRow, Trial, TuningJob
from store.models.base import Json
from store.paging import Page, PageRequest, fetch_page


class TrialRepository:
    """Reads and writes trials; a trial record's ``metrics`` live in the measurement table."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def find(self, job_id: str, number: int) -> Trial | None:
        query = sa.select(Trial).where(Trial.job_id == job_id, Trial.number == number)
        return self._session.scalars(query).one_or_none()

    def add(self, job_id: str, record: Json) -> Trial:
        """Keep a finished trial.

        Raises:
            ConflictError: the job already has a trial of this number.
        """
        body = dict(record)
        metrics = body.pop("metrics", None)
        trial = Trial(
            job_id=job_id, number=record["number"], state=str(record["state"]), record=body
        )
        try:
            with self._session.begin_nested():
                self._session.add(trial)
        except sa.exc.IntegrityError as error:
            raise ConflictError(
                f"tuning job {job_id} already has a trial {record['number']}"
            ) from error
        if metrics is not None:
            self._session.add(
                MeasurementRow(
                    trial_id=trial.id,
                    fidelity=str(record.get("fidelity") or "simulated"),
                    metrics=metrics,
                    metric_ids=METRIC_IDS,
                )
            )
            self._session.flush()
        return trial

    def list_records(self, job_id: str) -> list[Json]:
        """Every trial record of a job with its metrics, in order of number."""
        query = sa.select(Trial).where(Trial.job_id == job_id).order_by(Trial.number)
        return self.records(self._session.scalars(query).all())

    def list_newest_of(self, cost_model_id: str, *, limit: int) -> list[Json]:
        """The newest trial records of jobs that worked with a cost model."""
        query = (
            sa.select(Trial)
            .join(TuningJob, TuningJob.id == Trial.job_id)
            .where(TuningJob.cost_model_id == cost_model_id)
            .order_by(Trial.id.desc())
            .limit(limit)
        )
        return self.records(self._session.scalars(query).all())

    def list_page(self, job_id: str, page: PageRequest) -> Page[Trial]:
        """Trials of a job in order of number."""
        query = sa.select(Trial).where(Trial.job_id == job_id)
        return fetch_page(self._session, query, Trial.number, page, newest_first=False)

    def records(self, trials: Sequence[Trial]) -> list[Json]:
        """The records of these trials, each with its metrics back in place."""
        metrics = self._metrics(trial.id for trial in trials)
        return [{**trial.record, "metrics": metrics.get(trial.id)} for trial in trials]

    def count(self, job_id: str) -> int:
        """Finished trials of a job."""
        query = sa.select(sa.func.count()).select_from(Trial).where(Trial.job_id == job_id)
        return self._session.scalar(query) or 0

    def counts(self, job_ids: Collection[str]) -> dict[str, int]:
        """Finished trials of each of these jobs that has any."""
        query = sa.select(Trial.job_id, sa.func.count()).where(Trial.job_id.in_(job_ids))
        return dict(self._session.execute(query.group_by(Trial.job_id)).all())

    def count_by_state(self) -> dict[str, int]:
        query = sa.select(Trial.state, sa.func.count()).group_by(Trial.state)
        return dict(self._session.execute(query).all())

    def _metrics(self, trial_ids: Iterable[str]) -> dict[str, Json]:
        query = sa.select(MeasurementRow).where(MeasurementRow.trial_id.in_(list(trial_ids)))
        return {
            row.trial_id: row.metrics
            for row in self._session.scalars(query)
            if row.trial_id is not None
        }
