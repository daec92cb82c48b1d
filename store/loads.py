"""The load of engines, minute by minute."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from store.models import EngineLoad


class LoadRepository:
    """Reads and writes the minutes of engines; a minute never changes once kept."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, rows: Iterable[EngineLoad]) -> None:
        self._session.add_all(rows)
        self._session.flush()

    def last_start_s(self, engine_id: str) -> int | None:
        """When the newest minute that is kept began."""
        query = sa.select(sa.func.max(EngineLoad.start_s)).where(EngineLoad.engine_id == engine_id)
        return self._session.scalar(query)

    def list_since(self, engine_id: str, since_s: int) -> Sequence[EngineLoad]:
        """Minutes of an engine that began at ``since_s`` or later, oldest first."""
        query = (
            sa.select(EngineLoad)
            .where(EngineLoad.engine_id == engine_id, EngineLoad.start_s >= since_s)
            .order_by(EngineLoad.start_s)
        )
        return self._session.scalars(query).all()

    def drop_from(self, engine_id: str, start_s: int) -> None:
        """Drop an engine's minutes that begin at a time or later."""
        late = sa.and_(EngineLoad.engine_id == engine_id, EngineLoad.start_s >= start_s)
        self._session.execute(sa.delete(EngineLoad).where(late))

    def prune(self, *, before_s: int) -> None:
        """Drop minutes that began before a time."""
        self._session.execute(sa.delete(EngineLoad).where(EngineLoad.start_s < before_s))
