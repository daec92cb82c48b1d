"""The load of engines, minute by minute."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from policies.load_history import SLOT_S
from store.models import EngineLoad


class LoadRepository:
    """Reads and writes the minutes of engines; a minute changes only where a clock was set back."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def put(self, rows: Iterable[EngineLoad]) -> None:
        """Keep minutes, each in the place of the same one where that is kept."""
        for row in rows:
            self._session.merge(row)
        self._session.flush()

    def last_start_s(self, engine_id: str, *, before_s: int | None = None) -> int | None:
        """When the newest minute that is kept began, of all or of those before a time."""
        query = sa.select(sa.func.max(EngineLoad.start_s)).where(EngineLoad.engine_id == engine_id)
        if before_s is not None:
            query = query.where(EngineLoad.start_s < before_s)
        return self._session.scalar(query)

    def list_between(self, engine_id: str, since_s: int, now_s: float) -> Sequence[EngineLoad]:
        """Minutes of an engine that began at ``since_s`` or later and are over by ``now_s``, oldest
        first: what a clock that ran ahead left is not told before its time."""
        query = (
            sa.select(EngineLoad)
            .where(
                EngineLoad.engine_id == engine_id,
                EngineLoad.start_s >= since_s,
                EngineLoad.start_s <= now_s - SLOT_S,
            )
            .order_by(EngineLoad.start_s)
        )
        return self._session.scalars(query).all()

    def prune(self, *, before_s: int) -> None:
        """Drop minutes that began before a time."""
        self._session.execute(sa.delete(EngineLoad).where(EngineLoad.start_s < before_s))
