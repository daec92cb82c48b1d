"""The loop that looks at servers that are not ours, and keeps what it sees as their heartbeats."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

import msgspec
import structlog

from api.control.leader_loop import LeaderLoop
from api.control.loads import keep_load
from api.documents.control_state import observe
from api.documents.known_servers import (
    KnownServer,
    ServersFileError,
    read_known_servers,
)
from api.documents.live_window import LiveWindow
from api.documents.servers import Condition, Page, Restarts, stats_of
from api.observed.fetch import METRICS, FetchError, FetchLimits, fetch
from api.web.context import AppContext
from policies.errors import PolicyInputError
from policies.server_window import ServerWindow
from policies.sla import Sla
from store import UnitOfWork
from store.engines import Window
from store.models import EngineRow, ServerRow, Sight
from store.models.base import Json, utc_now
from tuner.launch.command import System
from tuner.servers.snapshot import PageError, Snapshot, between, read_page

# Two looks farther apart than both are not one window: when its requests came is not known.
MOST_GAP_INTERVALS, LEAST_GAP_S = 6, 30.0
# The most characters of the reason why there is no page.
MOST_DETAIL = 500
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Target:
    """One server to look at."""

    engine_id: str
    name: str
    system: System
    url: str


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a look found: a snapshot, or why there is none."""

    target: Target
    at: datetime
    snapshot: Snapshot | None = None
    sight: Sight = Sight.SEEN
    detail: str = ""


class Watcher:
    """Looks at every observed server, many at once, and writes what it found in one transaction.

    Of the services that share a database one looks; when it ends, another takes over, from what the
    rows keep of the last look.
    """

    def __init__(self, context: AppContext) -> None:
        self._context = context
        self._known: Mapping[str, KnownServer] = {}
        self._loop = LeaderLoop(
            context, "watcher", self.tick, every_s=context.settings.observe_interval_s
        )
        self._log = structlog.get_logger("api.observed.watcher")

    def start(self) -> None:
        """Look on a thread until :meth:`stop`."""
        self._loop.start()

    def stop(self) -> None:
        """End the thread; looks under way finish first, within their time limit."""
        self._loop.stop()

    def tick(self) -> None:
        """Look once at every server."""
        self._read_known()
        with self._context.database.read() as uow:
            targets = [_target(*pair) for pair in uow.servers.list_all()]
        if not targets:
            return
        looks = asyncio.run(self._look_at(targets))
        with self._context.database.begin() as uow:
            uow.commit_lazily()  # a window may be missing
            # Before their servers, as everybody else does: two who begin at other ends would each
            # wait for the other.
            uow.engines.hold([look.target.engine_id for look in looks])
            noted = [(look, self._alone(uow, look, self._note)) for look in looks]
            seen = [(look, window) for look, window in noted if window is not None]
            uow.engines.add_heartbeats([window for _, window in seen])
            for look, _ in seen:
                self._alone(uow, look, self._judge)

    def _alone(
        self, uow: UnitOfWork, look: Look, take: Callable[[UnitOfWork, Look], T]
    ) -> T | None:
        """What ``take`` makes of a look; None where that failed, which keeps nothing of this server
        and leaves what was kept of others."""
        key = f"{take.__name__.strip('_')} {look.target.engine_id}"
        with self._loop.troubles.turn(key), uow.part():
            return take(uow, look)
        return None

    def _read_known(self) -> None:
        """What was read last stays in force where the file is broken."""
        with self._loop.troubles.turn("file of servers"):
            self._known = read_known_servers(self._context.settings.servers_file)

    async def _look_at(self, targets: Sequence[Target]) -> list[Look]:
        settings = self._context.settings
        places = asyncio.Semaphore(settings.observe_concurrency)
        limits = FetchLimits(
            timeout_s=settings.observe_timeout_s,
            max_bytes=settings.observe_max_bytes,
            networks=settings.networks,
        )

        async def look(target: Target) -> Look | None:
            async with places:
                if self._loop.is_stopping():
                    return None
                try:
                    return await self._look(target, limits)
                except Exception as error:  # a bug of ours must not blind us to the others
                    self._log.exception("not looked at", engine=target.engine_id)
                    detail = f"it could not be looked at: {error!r}"
                    return _nothing_seen(target, Sight.UNREADABLE, detail)

        looks = await asyncio.gather(*map(look, targets))
        return [found for found in looks if found is not None]

    async def _look(self, target: Target, limits: FetchLimits) -> Look:
        try:
            text = await fetch(f"{target.url}{METRICS}", token=self._token(target), limits=limits)
            snapshot = read_page(text, target.system)
        except FetchError as error:
            return _nothing_seen(target, error.sight, error.detail)
        except ServersFileError as error:
            return _nothing_seen(target, Sight.REFUSED, str(error))
        except PageError as error:
            return _nothing_seen(target, Sight.UNREADABLE, str(error))
        if lacks := snapshot.lacks(target.system):
            why = f"{target.url}{METRICS} has no series of {target.system} for {', '.join(lacks)}"
            return _nothing_seen(target, Sight.NO_SERIES, why)
        return Look(target=target, at=utc_now(), snapshot=snapshot)

    def _token(self, target: Target) -> str | None:
        known = self._known.get(target.name)
        return known.token() if known is not None and known.is_at(target.url) else None

    def _note(self, uow: UnitOfWork, look: Look) -> Window | None:
        """Keep the condition and the page; the window since the page before, where there is one."""
        row = uow.servers.find(look.target.engine_id, for_update=True)
        if row is None or row.url != look.target.url:
            return None  # observed no more, or elsewhere
        self._note_restarts(row, look.target)
        if look.snapshot is None:
            is_away = row.restart is not None and Restarts.from_json(row.restart).is_under_way
            sight = Sight.RESTARTING if is_away else look.sight
            row.condition = _next(row, look, sight, detail=look.detail)
            return None
        window, is_restarted = self._window(row, look, look.snapshot)
        row.condition = _next(
            row,
            look,
            Sight.RESTARTED if is_restarted else Sight.SEEN,
            missing=look.snapshot.missing(look.target.system),
        )
        row.page = Page(at_s=look.at.timestamp(), snapshot=look.snapshot).to_json()
        if window is None:
            return None
        return Window(
            engine_id=row.engine_id,
            window_s=window.window_s,
            arrived=round(window.arrived),
            stats=stats_of(window, look.snapshot),
            requests=[],
            steps=[],
        )

    def _window(
        self, row: ServerRow, look: Look, snapshot: Snapshot
    ) -> tuple[ServerWindow | None, bool]:
        """What was counted since the page before, and whether the server began anew meanwhile."""
        if row.page is None:
            return None, False
        before = Page.from_json(row.page)
        gap_s = look.at.timestamp() - before.at_s
        interval_s = self._context.settings.observe_interval_s
        if not 0 < gap_s <= max(MOST_GAP_INTERVALS * interval_s, LEAST_GAP_S):
            return None, False
        try:
            window = between(before.snapshot, snapshot, window_s=gap_s)
        except PolicyInputError as error:
            self._log.warning("window left out", engine=row.engine_id, error=str(error))
            return None, False
        return window, window is None

    def _note_restarts(self, row: ServerRow, target: Target) -> None:
        """What the file says of restarting it, as everything else reads it from its row."""
        known = self._known.get(target.name)
        by = known.restarts_by if known is not None and known.is_at(target.url) else None
        if known is None or by is None:
            row.restart = None
            return
        now = Restarts.from_json(row.restart) if row.restart else Restarts(by=by)
        noted = msgspec.structs.replace(now, by=by, away_s=known.away_s)
        if noted.to_json() != row.restart:
            row.restart = noted.to_json()

    def _judge(self, uow: UnitOfWork, look: Look) -> None:
        """Show what was seen as what is, as the controller does for engines with a schedule."""
        engine = uow.engines.get(look.target.engine_id)
        if engine.capacity_table is None:  # with one the slow loop does so
            keep_load(uow, engine, look.at)
        since = look.at - timedelta(seconds=self._context.settings.control_window_s)
        sla = Sla.parse(engine.sla) if engine.sla else None
        seen = observe(uow.engines.list_heartbeats(engine.id, since=since), sla, now=look.at)
        if seen is not None:
            engine.live_window = LiveWindow.of(
                seen, predicted={}, load_ratio=None, now_s=look.at.timestamp()
            ).to_json()


def _target(engine: EngineRow, server: ServerRow) -> Target:
    assert engine.system is not None, "an engine with a server has a system"
    return Target(
        engine_id=engine.id, name=engine.name, system=System(engine.system), url=server.url
    )


def _nothing_seen(target: Target, sight: Sight, why: str) -> Look:
    return Look(target=target, at=utc_now(), sight=sight, detail=why[:MOST_DETAIL])


def _next(row: ServerRow, look: Look, sight: Sight, **said: Any) -> Json:
    return Condition.from_json(row.condition).then(sight, look.at.timestamp(), **said).to_json()
