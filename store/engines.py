"""Registered engines and their heartbeats."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session, load_only

from store.errors import NotFoundError
from store.models import EngineRow, Heartbeat
from store.models.base import Json, JsonList, utc_now
from store.paging import Page, PageRequest, fetch_page


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

    def add_heartbeat(
        self,
        engine_id: str,
        *,
        window_s: float,
        arrived: int,
        stats: Json,
        requests: JsonList,
        steps: JsonList,
    ) -> Heartbeat:
        """Keep one window and stamp the engine as alive.

        Raises:
            NotFoundError: no such engine.
        """
        self.get(engine_id).last_heartbeat_at = utc_now()
        beat = Heartbeat(
            engine_id=engine_id,
            window_s=window_s,
            arrived=arrived,
            stats=stats,
            requests=requests,
            steps=steps,
        )
        self._session.add(beat)
        self._session.flush()
        return beat

    def list_heartbeats(self, engine_id: str, *, since: datetime) -> Sequence[Heartbeat]:
        """Windows received since a time, oldest first."""
        query = (
            sa.select(Heartbeat)
            .where(Heartbeat.engine_id == engine_id, Heartbeat.received_at >= since)
            .order_by(Heartbeat.id)
        )
        return self._session.scalars(query).all()

    def prune_heartbeats(self, *, before: datetime) -> int:
        """Drop windows received before a time; returns how many."""
        done = self._session.execute(
            sa.delete(Heartbeat).where(Heartbeat.received_at < before).returning(Heartbeat.id)
        )
        return len(done.all())
