"""Decisions of the controller."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa
from sqlalchemy.orm import Session

from store.models import DecisionRow, MeasurementRow
from store.paging import Page, PageRequest, fetch_page

# How reasons of the slow loop begin.
CAPACITY = "capacity_"


class DecisionRepository:
    """Reads and writes decisions, and the measurements of live windows they rest on."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, row: DecisionRow) -> DecisionRow:
        self._session.add(row)
        self._session.flush()
        return row

    def find_last(self, engine_id: str, *, is_capacity: bool = False) -> DecisionRow | None:
        """The newest decision of one of the two loops about an engine; those of the slow one have
        reasons that begin with ``CAPACITY``."""
        by_slow_loop = DecisionRow.reason.startswith(CAPACITY, autoescape=True)
        query = (
            sa.select(DecisionRow)
            .where(DecisionRow.engine_id == engine_id)
            .where(by_slow_loop if is_capacity else ~by_slow_loop)
            .order_by(DecisionRow.id.desc())
            .limit(1)
        )
        return self._session.scalars(query).one_or_none()

    def find_last_of(self, engine_ids: Collection[str]) -> dict[str, DecisionRow]:
        """The newest decision about each of these engines that has any."""
        newest = (
            sa.select(sa.func.max(DecisionRow.id))
            .where(DecisionRow.engine_id.in_(engine_ids))
            .group_by(DecisionRow.engine_id)
        )
        rows = self._session.scalars(sa.select(DecisionRow).where(DecisionRow.id.in_(newest)))
        return {row.engine_id: row for row in rows}

    def list_page(self, page: PageRequest, *, engine_id: str | None = None) -> Page[DecisionRow]:
        """Decisions, newest first."""
        query = sa.select(DecisionRow)
        if engine_id is not None:
            query = query.where(DecisionRow.engine_id == engine_id)
        return fetch_page(self._session, query, DecisionRow.id, page)

    def add_measurement(self, row: MeasurementRow) -> MeasurementRow:
        self._session.add(row)
        self._session.flush()
        return row
