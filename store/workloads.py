"""Uploaded traces: what is known of them, and their bytes in pieces."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing

import sqlalchemy as sa
from sqlalchemy.orm import Session

from store.errors import ConflictError, NotFoundError
from store.models import TuningJob, WorkloadPart, WorkloadRow
from store.paging import Page, PageRequest, fetch_page
from store.rows import find_row

READ_AT_ONCE = 4


class WorkloadRepository:
    """Reads and writes workloads; one never changes once kept."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, row: WorkloadRow, parts: Iterable[bytes]) -> WorkloadRow:
        """Keep a trace; ``parts`` are compressed pieces (:func:`compress`)."""
        self._session.add(row)
        self._session.flush()
        rows = [
            {"workload_id": row.id, "number": number, "data": data}
            for number, data in enumerate(parts)
        ]
        self._session.execute(sa.insert(WorkloadPart), rows)
        return row

    def find(self, workload_id: str, *, for_use: bool = False) -> WorkloadRow | None:
        """The workload; ``for_use`` keeps it from being removed until the unit of work ends."""
        lock = {"read": True, "key_share": True} if for_use else None
        return self._session.get(WorkloadRow, workload_id, with_for_update=lock)

    def get(self, workload_id: str) -> WorkloadRow:
        """Raises NotFoundError when there is none."""
        row = self.find(workload_id)
        if row is None:
            raise NotFoundError("workload", workload_id)
        return row

    def list_page(self, page: PageRequest) -> Page[WorkloadRow]:
        """Workloads, newest first."""
        return fetch_page(self._session, sa.select(WorkloadRow), WorkloadRow.id, page)

    def list_known(self, workload_ids: Iterable[str]) -> set[str]:
        """Those of ``workload_ids`` that exist."""
        query = sa.select(WorkloadRow.id).where(WorkloadRow.id.in_(list(workload_ids)))
        return set(self._session.scalars(query))

    def read(self, workload_id: str) -> Iterator[bytes]:
        """The bytes as they were uploaded, piece by piece."""
        query = (
            sa.select(WorkloadPart.data)
            .where(WorkloadPart.workload_id == workload_id)
            .order_by(WorkloadPart.number)
        )
        rows = self._session.scalars(query.execution_options(yield_per=READ_AT_ONCE))
        with closing(rows):
            for data in rows:
                yield zlib.decompress(data)

    def delete(self, workload_id: str) -> WorkloadRow:
        """Remove one that no job names.

        Raises:
            NotFoundError: there is none.
            ConflictError: a job names it.
        """
        row = find_row(self._session, WorkloadRow, workload_id, for_update=True)
        if row is None:
            raise NotFoundError("workload", workload_id)
        query = sa.select(TuningJob.id).where(TuningJob.workload_id == workload_id).limit(1)
        job_id = self._session.scalars(query).one_or_none()
        if job_id is not None:
            raise ConflictError(
                f"workload {workload_id} is that of tuning job {job_id}; remove the job first"
            )
        self._session.delete(row)
        return row


def compress(piece: bytes) -> bytes:
    """A piece as it is kept."""
    return zlib.compress(piece, level=3)
