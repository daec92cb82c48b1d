"""Registered engines and their heartbeats."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session, load_only

from store.errors import NotFoundError
from store.models import EngineRow, Heartbeat
from store.models.base import utc_now
from store.paging import Page, PageRequest, fetch_page

# What a heartbeat is judged by; models and knobs are long.
SMALL_COLUMNS = load_only(
    EngineRow.name,
    EngineRow.host,
    EngineRow.credential_hash,
    EngineRow.effective_policy,
    EngineRow.desired_version,
)


class EngineRepository:
    """Reads and writes engines; an engine keeps its identity by name."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, row: EngineRow) -> EngineRow:
        self._session.add(row)
        self._session.flush()
        return row

    def get(self, engine_id: str, *, for_update: bool = False) -> EngineRow:
        """The engine; ``for_update`` holds its row until the unit of work ends.

        Raises:
            NotFoundError: no such engine.
        """
        row = self._session.get(EngineRow, engine_id, with_for_update=for_update or None)
        if row is None:
            raise NotFoundError("engine", engine_id)
        return row

    def find_by_name(self, name: str) -> EngineRow | None:
        query = sa.select(EngineRow).where(EngineRow.name == name).with_for_update()
        return self._session.scalars(query).one_or_none()

    def list_page(self, page: PageRequest) -> Page[EngineRow]:
        """Engines in order of registration."""
        query = sa.select(EngineRow)
        return fetch_page(self._session, query, EngineRow.id, page, newest_first=False)

    def list_scheduled(self) -> Sequence[EngineRow]:
        """Engines the controller works on: those with a schedule."""
        query = sa.select(EngineRow).where(EngineRow.schedule.is_not(None)).order_by(EngineRow.id)
        return self._session.scalars(query).all()

    def list_alive(self, *, since: datetime) -> Sequence[EngineRow]:
        """Engines that were heard of since a time."""
        query = (
            sa.select(EngineRow)
            .where(EngineRow.last_heartbeat_at >= since)
            .order_by(EngineRow.id)
            .options(
                load_only(
                    EngineRow.name,
                    EngineRow.model_name,
                    EngineRow.live_window,
                )
            )
        )
        return self._session.scalars(query).all()

    def desired_versions(self) -> dict[str, int]:
        """The policy version that each engine is asked to run."""
        query = sa.select(EngineRow.id, EngineRow.desired_version)
        return dict(self._session.execute(query).all())

    def find_all(self, engine_ids: Collection[str]) -> dict[str, EngineRow]:
        """Those of these engines that there are. Their large columns are read when used."""
        query = sa.select(EngineRow).where(EngineRow.id.in_(engine_ids)).options(SMALL_COLUMNS)
        return {row.id: row for row in self._session.scalars(query)}

    def add_heartbeats(self, beats: Sequence[Heartbeat]) -> None:
        """Keep windows and stamp their engines as alive.

        Raises:
            sqlalchemy.exc.IntegrityError: one is of no engine.
        """
        self._session.add_all(beats)
        self._session.flush()
        stamp = sa.update(EngineRow).where(EngineRow.id.in_({beat.engine_id for beat in beats}))
        self._session.execute(
            stamp.values(last_heartbeat_at=utc_now()),
            execution_options={"synchronize_session": False},
        )

    def list_heartbeats(self, engine_id: str, *, since: datetime) -> Sequence[Heartbeat]:
        """Windows received since a time, oldest first."""
        query = (
            sa.select(Heartbeat)
            .where(Heartbeat.engine_id == engine_id, Heartbeat.received_at >= since)
            .order_by(Heartbeat.id)
        )
        return self._session.scalars(query).all()

    def prune_heartbeats(self, *, before: datetime, limit: int) -> int:
        """Drop up to ``limit`` windows received before a time; returns how many."""
        old = sa.select(Heartbeat.id).where(Heartbeat.received_at < before).limit(limit)
        done = self._session.execute(
            sa.delete(Heartbeat).where(Heartbeat.id.in_(old)).returning(Heartbeat.id)
        )
        return len(done.all())
