"""Tuning jobs and their events."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session, defer

from store.errors import ConflictError, NotFoundError
from store.models import JobEventRow, JobState, TuningJob
from store.models.base import Json
from store.paging import Page, PageRequest, fetch_page
from store.rows import find_row
from store.watched import Change, note
from tuner.search.costs import SPENT, Spent


class JobRepository:
    """Reads and writes tuning jobs. A job's events are numbered by the job row itself."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(
        self, *, spec: Json, num_trials: int, created_by: str, retune_key: str | None = None
    ) -> TuningJob:
        """Keep a job; of each ``retune_key`` there is one.

        Raises:
            ConflictError: there is one with this key.
        """
        job = TuningJob(
            spec=spec, num_trials=num_trials, created_by=created_by, retune_key=retune_key
        )
        try:
            with self._session.begin_nested():
                self._session.add(job)
        except sa.exc.IntegrityError as error:
            if retune_key is None:
                raise
            raise ConflictError(f"there is a tuning job for {retune_key} already") from error
        return job

    def find_retune(self, retune_key: str) -> TuningJob | None:
        """The job that drift asked for under this key."""
        query = sa.select(TuningJob).where(TuningJob.retune_key == retune_key)
        return self._session.scalars(query).one_or_none()

    def count_retunes(self, prefix: str, *, since: datetime) -> int:
        """Jobs since a time that drift asked for under keys that begin so."""
        query = sa.select(sa.func.count()).where(
            TuningJob.retune_key.startswith(prefix, autoescape=True), TuningJob.created_at >= since
        )
        return self._session.scalar(query) or 0

    def get(self, job_id: str, *, for_update: bool = False) -> TuningJob:
        """The job; ``for_update`` holds its row until the unit of work ends.

        Raises:
            NotFoundError: no such job.
        """
        job = self.find(job_id, for_update=for_update)
        if job is None:
            raise NotFoundError("tuning job", job_id)
        return job

    def find(self, job_id: str, *, for_update: bool = False) -> TuningJob | None:
        """As :meth:`get`; None: no such job."""
        return find_row(self._session, TuningJob, job_id, for_update=for_update)

    def list_page(self, page: PageRequest, *, state: JobState | None = None) -> Page[TuningJob]:
        """Jobs, newest first. Their reports, which are long, are read when used."""
        query = sa.select(TuningJob).options(defer(TuningJob.report))
        if state is not None:
            query = query.where(TuningJob.state == state)
        return fetch_page(self._session, query, TuningJob.id, page)

    def list_open(self) -> Sequence[TuningJob]:
        """Jobs that are not finished, oldest first."""
        states = [state for state in JobState if not state.is_final]
        query = sa.select(TuningJob).where(TuningJob.state.in_(states)).order_by(TuningJob.id)
        return self._session.scalars(query).all()

    def find_newest(self, *, created_by: str, states: Collection[JobState]) -> TuningJob | None:
        """The newest job of one maker that is in one of ``states``."""
        query = (
            sa.select(TuningJob)
            .where(TuningJob.created_by == created_by, TuningJob.state.in_(states))
            .order_by(TuningJob.id.desc())
            .limit(1)
        )
        return self._session.scalars(query).one_or_none()

    def delete(self, job: TuningJob) -> None:
        """Remove a job with its events and trials."""
        self._session.delete(job)

    def append_event(self, job_id: str, event_type: str, data: Json) -> int:
        """Add the job's next event; returns its sequence number, from 1 without gaps.

        Raises:
            NotFoundError: no such job.
        """
        bump = (
            sa.update(TuningJob)
            .where(TuningJob.id == job_id)
            .values(last_event_seq=TuningJob.last_event_seq + 1)
            .returning(TuningJob.last_event_seq)
            .execution_options(synchronize_session=False)
        )
        self._session.flush()
        seq = self._session.execute(bump).scalar_one_or_none()
        if seq is None:
            raise NotFoundError("tuning job", job_id)
        self._session.add(JobEventRow(job_id=job_id, seq=seq, type=event_type, data=data))
        self._session.flush()
        note(self._session, Change.AWAITED)
        return seq

    def last_events(self, job_ids: Collection[str]) -> dict[str, int]:
        """The last event's number of each of these jobs; one that is gone is left out."""
        query = sa.select(TuningJob.id, TuningJob.last_event_seq).where(TuningJob.id.in_(job_ids))
        return dict(self._session.execute(query).all())

    def list_events(self, job_id: str, *, after: int, limit: int = 500) -> Sequence[JobEventRow]:
        """Up to ``limit`` events after sequence number ``after``, in order."""
        query = (
            sa.select(JobEventRow)
            .where(JobEventRow.job_id == job_id, JobEventRow.seq > after)
            .order_by(JobEventRow.seq)
            .limit(limit)
        )
        return self._session.scalars(query).all()

    def spent(self, job_id: str) -> Spent:
        """What the job told of in events that it took after its trials, which keep
        theirs themselves."""
        query = sa.select(JobEventRow.data).where(
            JobEventRow.job_id == job_id, JobEventRow.type == SPENT
        )
        found = self._session.scalars(query).all()
        return Spent(
            seconds=float(sum(data["seconds"] for data in found)),
            device_seconds=float(sum(data["device_seconds"] for data in found)),
        )

    def count_by_state(self) -> dict[JobState, int]:
        """Jobs per state, states without a job included."""
        query = sa.select(TuningJob.state, sa.func.count()).group_by(TuningJob.state)
        found = dict(self._session.execute(query).all())
        return {state: found.get(state, 0) for state in JobState}
