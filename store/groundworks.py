"""What the trials of open jobs rest on, so that another process need not work it out again."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session

from store.models import Groundwork
from store.models.base import Json


class GroundworkRepository:
    """One document a job, which its writer knows how to read; none once the job has ended."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def put(self, job_id: str, document: Json) -> None:
        """Keep ``document`` in place of the one before. The caller holds the job's row."""
        row = self._session.get(Groundwork, job_id)
        if row is None:
            self._session.add(Groundwork(job_id=job_id, document=document))
        else:
            row.document = document
        self._session.flush()

    def find(self, job_id: str) -> Json | None:
        """What was kept last."""
        row = self._session.get(Groundwork, job_id)
        return None if row is None else row.document

    def drop(self, job_id: str) -> None:
        """Remove what is kept of a job, if anything is."""
        self._session.execute(sa.delete(Groundwork).where(Groundwork.job_id == job_id))
