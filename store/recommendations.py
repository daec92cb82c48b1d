"""Recommendations, one per finished job."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa
from sqlalchemy.orm import Session

from store.errors import NotFoundError
from store.models import RecommendationRow
from store.models.base import Json
from store.paging import Page, PageRequest, fetch_page


class RecommendationRepository:
    """Reads and writes recommendations."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(
        self,
        *,
        job_id: str,
        cost_model_id: str | None,
        sla: str,
        document: Json,
        schedule: Json | None,
        warnings: list[str],
    ) -> RecommendationRow:
        row = RecommendationRow(
            job_id=job_id,
            cost_model_id=cost_model_id,
            sla=sla,
            document=document,
            schedule=schedule,
            warnings=warnings,
        )
        self._session.add(row)
        self._session.flush()
        return row

    def get(self, recommendation_id: str) -> RecommendationRow:
        """Raises NotFoundError when there is none."""
        row = self._session.get(RecommendationRow, recommendation_id)
        if row is None:
            raise NotFoundError("recommendation", recommendation_id)
        return row

    def find_for_job(self, job_id: str) -> RecommendationRow | None:
        query = sa.select(RecommendationRow).where(RecommendationRow.job_id == job_id)
        return self._session.scalars(query).one_or_none()

    def ids_for_jobs(self, job_ids: Collection[str]) -> dict[str, str]:
        """The recommendation's id of each of these jobs that led to one."""
        row = RecommendationRow
        query = sa.select(row.job_id, row.id).where(row.job_id.in_(job_ids))
        found = self._session.execute(query)
        return {job_id: row_id for job_id, row_id in found if job_id is not None}

    def list_page(self, page: PageRequest) -> Page[RecommendationRow]:
        """Recommendations, newest first."""
        return fetch_page(self._session, sa.select(RecommendationRow), RecommendationRow.id, page)
