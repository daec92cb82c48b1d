"""Decisions of the controller."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa
from sqlalchemy.orm import Session

from store.errors import NotFoundError
from store.models import DecisionRow, MeasurementRow
from store.paging import Page, PageRequest, fetch_page

# Reasons of the slow loop, and of the watch over the model's predictions, begin with these.
CAPACITY = "capacity_"
MODEL = "model_"
OTHERS = (CAPACITY, MODEL)


class DecisionRepository:
    """Reads and writes decisions, and the measurements of live windows they rest on."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, row: DecisionRow) -> DecisionRow:
        self._session.add(row)
        self._session.flush()
        return row

    def get(self, decision_id: int) -> DecisionRow:
        """Raises NotFoundError when there is none."""
        row = self._session.get(DecisionRow, decision_id)
        if row is None:
            raise NotFoundError("decision", decision_id)
        return row

    def find_last(self, engine_id: str, *, loop: str | None = None) -> DecisionRow | None:
        """The newest decision about an engine of one loop (``CAPACITY``, ``MODEL``); None: of the
        fast one, whose reasons have no beginning of their own."""
        begins = {name: DecisionRow.reason.startswith(name, autoescape=True) for name in OTHERS}
        query = (
            sa.select(DecisionRow)
            .where(DecisionRow.engine_id == engine_id)
            .where(~sa.or_(*begins.values()) if loop is None else begins[loop])
            .order_by(DecisionRow.id.desc())
            .limit(1)
        )
        return self._session.scalars(query).one_or_none()

    def find_last_of(self, engine_ids: Collection[str]) -> dict[str, DecisionRow]:
        """The newest decision on settings of each of these engines that has any."""
        newest = (
            sa.select(sa.func.max(DecisionRow.id))
            .where(DecisionRow.engine_id.in_(engine_ids))
            .where(~DecisionRow.reason.startswith(MODEL, autoescape=True))
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
