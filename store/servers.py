"""Servers that are observed by their address."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from store.errors import NotFoundError
from store.models import EngineRow, ServerRow
from store.rows import find_row


class ServerRepository:
    """Reads and writes servers; each belongs to one engine."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, row: ServerRow) -> ServerRow:
        self._session.add(row)
        self._session.flush()
        return row

    def find(self, engine_id: str, *, for_update: bool = False) -> ServerRow | None:
        """The engine's server; None: the engine reports itself, or is not observed any more."""
        return find_row(self._session, ServerRow, engine_id, for_update=for_update)

    def get(self, engine_id: str) -> ServerRow:
        """Raises NotFoundError where the engine has none."""
        row = self.find(engine_id)
        if row is None:
            raise NotFoundError("observed engine", engine_id)
        return row

    def list_all(self) -> Sequence[tuple[EngineRow, ServerRow]]:
        """Every server with its engine, in order of their registration."""
        query = (
            sa.select(EngineRow, ServerRow)
            .join(ServerRow, ServerRow.engine_id == EngineRow.id)
            .order_by(EngineRow.id)
        )
        return [(engine, server) for engine, server in self._session.execute(query)]

    def remove(self, engine_id: str) -> None:
        """Observe it no more; nothing where it was not."""
        self._session.execute(sa.delete(ServerRow).where(ServerRow.engine_id == engine_id))
