"""Registered engines and their heartbeats."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple, TypedDict, cast

import sqlalchemy as sa
from sqlalchemy.orm import Session, defer, load_only

from store.errors import ConflictError, NotFoundError
from store.models import EngineRow, Heartbeat
from store.models.base import Json, JsonList, utc_now
from store.paging import Page, PageRequest, fetch_page
from store.rows import find_row

LONG_COLUMNS = (
    EngineRow.capabilities,
    EngineRow.schedule,
    EngineRow.control_memory,
    EngineRow.capacity_table,
    EngineRow.capacity_memory,
    EngineRow.drift_memory,
)
# How far apart the clocks of two services that share a database may be.
CLOCKS_APART = timedelta(seconds=5)
BEATS = cast("sa.Table", Heartbeat.__table__)
ENGINES = cast("sa.Table", EngineRow.__table__)
# These statements are built once and make no ORM objects: hundreds of heartbeats come each second.
ADD_BEATS = sa.insert(BEATS)
STAMP = (
    sa.update(ENGINES)
    .where(ENGINES.c.id.in_(sa.bindparam("ids", expanding=True)))
    .values(last_heartbeat_at=sa.bindparam("now"))
)
# All engines in one row, "id version hash,id version hash,...": the driver releases the interpreter
# lock for every row that it fetches, so a thousand rows would mean a thousand waits for it.
WISHES = sa.select(
    sa.func.aggregate_strings(
        ENGINES.c.id
        + " "
        + sa.cast(ENGINES.c.desired_version, sa.String)
        + " "
        + sa.func.coalesce(ENGINES.c.credential_hash, ""),
        ",",
    )
)


class Sender(NamedTuple):
    """What a heartbeat's engine is judged by."""

    id: str
    name: str
    host: str
    credential_hash: str | None
    effective_policy: Json
    desired_version: int


# Held in the order of ids, as whoever holds several does: of two services that each keep a group of
# beats, one waits before it has what the other needs. (SQLite has one writer.)
SENDERS = (
    sa.select(*(ENGINES.c[name] for name in Sender._fields))
    .where(ENGINES.c.id.in_(sa.bindparam("ids", expanding=True)))
    .order_by(ENGINES.c.id)
    .with_for_update(key_share=True)
)


class Wish(NamedTuple):
    """What an engine is asked to run, and the hash of its credential, if it has one."""

    version: int
    credential_hash: str | None


def parse_wishes(text: str) -> dict[str, Wish]:
    """The policy version that each engine is asked to run, and what it proves its identity with."""
    parts = (wish.split(" ") for wish in text.split(",") if wish)
    return {
        engine_id: Wish(int(version), credential_hash or None)
        for engine_id, version, credential_hash in parts
    }


class Window(TypedDict):
    """One heartbeat to keep: the columns of :class:`Heartbeat`."""

    engine_id: str
    window_s: float
    arrived: int
    stats: Json
    requests: JsonList
    steps: JsonList


class EngineRepository:
    """Reads and writes engines; an engine keeps its identity by name."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, row: EngineRow) -> EngineRow:
        """Keep a new engine; of each name there is one.

        Raises:
            ConflictError: another came first under this name, perhaps a moment ago.
        """
        try:
            with self._session.begin_nested():
                self._session.add(row)
        except sa.exc.IntegrityError as error:
            raise ConflictError(f"there is an engine named {row.name!r} already") from error
        return row

    def get(self, engine_id: str, *, for_update: bool = False) -> EngineRow:
        """The engine; ``for_update`` holds its row until the unit of work ends.

        Raises:
            NotFoundError: no such engine.
        """
        row = find_row(self._session, EngineRow, engine_id, for_update=for_update)
        if row is None:
            named = sa.select(EngineRow.id).where(EngineRow.name == engine_id)
            found = self._session.scalars(named).one_or_none()
            hint = "" if found is None else f"; the id of the engine with this name is {found}"
            raise NotFoundError("engine", engine_id, hint=hint)
        return row

    def hold(self, engine_ids: Collection[str]) -> None:
        """Hold the rows of all of these until the unit of work ends, in the order of ids."""
        query = sa.select(EngineRow.id).where(EngineRow.id.in_(engine_ids)).order_by(EngineRow.id)
        self._session.execute(query.with_for_update())

    def find_by_name(self, name: str) -> EngineRow | None:
        query = sa.select(EngineRow).where(EngineRow.name == name).with_for_update()
        return self._session.scalars(query).one_or_none()

    def list_page(self, page: PageRequest) -> Page[EngineRow]:
        """Engines in order of registration. Long, seldom shown columns are read when used."""
        query = sa.select(EngineRow).options(*map(defer, LONG_COLUMNS))
        return fetch_page(self._session, query, EngineRow.id, page, newest_first=False)

    def list_scheduled_ids(self) -> Sequence[str]:
        """Engines the controller works on: those with a schedule or a capacity table."""
        has_work = EngineRow.schedule.is_not(None) | EngineRow.capacity_table.is_not(None)
        query = sa.select(EngineRow.id).where(has_work).order_by(EngineRow.id)
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
                    EngineRow.drift_memory,
                )
            )
        )
        return self._session.scalars(query).all()

    def read_wishes(self) -> str:
        """All engines' wishes as one text, equal while nothing has changed; :func:`parse_wishes`
        takes it apart.
        """
        return self._session.connection().execute(WISHES).scalar() or ""

    def find_senders(self, engine_ids: Collection[str]) -> dict[str, Sender]:
        """Those of these engines that there are, held until the unit of work ends."""
        found = self._session.connection().execute(SENDERS, {"ids": list(engine_ids)})
        return {row[0]: Sender(*row) for row in found}

    def add_heartbeats(self, beats: Sequence[Window]) -> None:
        """Keep windows and stamp their engines as alive.

        Raises:
            sqlalchemy.exc.IntegrityError: one is of no engine.
        """
        if not beats:
            return
        now, connection = utc_now(), self._session.connection()
        connection.execute(ADD_BEATS, [{**beat, "received_at": now} for beat in beats])
        ids = sorted({beat["engine_id"] for beat in beats})
        connection.execute(STAMP, {"ids": ids, "now": now})

    def list_heartbeats(self, engine_id: str, *, since: datetime) -> Sequence[Heartbeat]:
        """Windows received since a time, oldest first, without those from the future that exist for
        a while after a clock was set back."""
        until = utc_now() + CLOCKS_APART
        query = (
            sa.select(Heartbeat)
            .where(Heartbeat.engine_id == engine_id, Heartbeat.received_at.between(since, until))
            .order_by(Heartbeat.id)
        )
        return self._session.scalars(query).all()

    def list_loads(self, *, since: datetime) -> Sequence[Heartbeat]:
        """Windows of all engines received since a time, oldest first, without their requests."""
        query = (
            sa.select(Heartbeat)
            .where(Heartbeat.received_at >= since)
            .order_by(Heartbeat.id)
            .options(defer(Heartbeat.requests, raiseload=True))
        )
        return self._session.scalars(query).all()

    def prune_heartbeats(self, *, before: datetime, limit: int) -> int:
        """Drop up to ``limit`` windows received before a time; returns how many."""
        old = sa.select(Heartbeat.id).where(Heartbeat.received_at < before).limit(limit)
        done = self._session.execute(
            sa.delete(Heartbeat).where(Heartbeat.id.in_(old)).returning(Heartbeat.id)
        )
        return len(done.all())
