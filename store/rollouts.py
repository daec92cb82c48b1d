"""Rollouts and their events."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from store.errors import NotFoundError
from store.models import RolloutEventRow, RolloutRow, RolloutState
from store.models.base import Json
from store.models.rollouts import UNDER_WAY
from store.paging import Page, PageRequest, fetch_page
from store.rows import find_row
from store.watched import Change, note


class RolloutRepository:
    """Reads and writes rollouts. Whoever changes one holds its engine's row, so an engine never has
    more than one under way."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, row: RolloutRow) -> RolloutRow:
        self._session.add(row)
        self._session.flush()
        return row

    def get(self, rollout_id: str, *, for_update: bool = False) -> RolloutRow:
        """The rollout; ``for_update`` holds its row until the unit of work ends.

        Raises:
            NotFoundError: no such rollout.
        """
        row = find_row(self._session, RolloutRow, rollout_id, for_update=for_update)
        if row is None:
            raise NotFoundError("rollout", rollout_id)
        return row

    def find(self, rollout_id: str) -> RolloutRow | None:
        return self._session.get(RolloutRow, rollout_id)

    def find_under_way(self, engine_id: str) -> RolloutRow | None:
        """The rollout of an engine that has not ended."""
        query = sa.select(RolloutRow).where(
            RolloutRow.engine_id == engine_id, RolloutRow.state.in_(UNDER_WAY)
        )
        return self._session.scalars(query).one_or_none()

    def list_under_way(self) -> Sequence[tuple[str, str]]:
        """Engine and rollout of each that has not ended."""
        query = (
            sa.select(RolloutRow.engine_id, RolloutRow.id)
            .where(RolloutRow.state.in_(UNDER_WAY))
            .order_by(RolloutRow.id)
        )
        return [(engine_id, rollout_id) for engine_id, rollout_id in self._session.execute(query)]

    def list_page(
        self, page: PageRequest, *, engine_id: str | None = None, state: RolloutState | None = None
    ) -> Page[RolloutRow]:
        """Rollouts, newest first."""
        query = sa.select(RolloutRow)
        if engine_id is not None:
            query = query.where(RolloutRow.engine_id == engine_id)
        if state is not None:
            query = query.where(RolloutRow.state == state)
        return fetch_page(self._session, query, RolloutRow.id, page)

    def append_event(self, row: RolloutRow, event_type: str, data: Json) -> None:
        """Add the next event, numbered from 1 without gaps."""
        row.last_event_seq += 1
        self._session.add(
            RolloutEventRow(rollout_id=row.id, seq=row.last_event_seq, type=event_type, data=data)
        )
        self._session.flush()
        note(self._session, Change.AWAITED)

    def list_events(
        self, rollout_id: str, *, after: int, limit: int = 500
    ) -> Sequence[RolloutEventRow]:
        """Up to ``limit`` events after sequence number ``after``, in order."""
        query = (
            sa.select(RolloutEventRow)
            .where(RolloutEventRow.rollout_id == rollout_id, RolloutEventRow.seq > after)
            .order_by(RolloutEventRow.seq)
            .limit(limit)
        )
        return self._session.scalars(query).all()

    def list_events_of(self, rollout_id: str, event_type: str) -> Sequence[RolloutEventRow]:
        """Every event of one type, in order."""
        query = (
            sa.select(RolloutEventRow)
            .where(RolloutEventRow.rollout_id == rollout_id, RolloutEventRow.type == event_type)
            .order_by(RolloutEventRow.seq)
        )
        return self._session.scalars(query).all()

    def last_events(self, rollout_ids: Collection[str]) -> dict[str, int]:
        """The last event's number of each of these; one that is gone is left out."""
        query = sa.select(RolloutRow.id, RolloutRow.last_event_seq).where(
            RolloutRow.id.in_(rollout_ids)
        )
        return dict(self._session.execute(query).all())

    def count_by_state(self) -> dict[RolloutState, int]:
        """Rollouts per state, states without one included."""
        query = sa.select(RolloutRow.state, sa.func.count()).group_by(RolloutRow.state)
        found = dict(self._session.execute(query).all())
        return {state: found.get(state, 0) for state in RolloutState}
