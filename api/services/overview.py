"""The fleet at a glance: what every engine runs, how loaded it is, and what is wrong with it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum

from api.documents.live_window import LiveWindow
from api.documents.servers import Condition
from api.schemas.serving import EngineView
from api.services import engines
from api.web.settings import ServiceSettings
from policies.decision import Action
from store import UnitOfWork
from store.models import (
    AckState,
    DecisionRow,
    EngineRow,
    Heartbeat,
    PolicyVersion,
    ServerRow,
    Sight,
)
from store.models.base import utc_now
from store.paging import PageRequest

# The window that counts as now: a few heartbeats.
NOW_S = 5.0
MOST_ENGINES = 500


class Standing(StrEnum):
    """How an engine stands, worst first."""

    CONDITION = "condition"
    REFUSED = "refused"
    UNHEALTHY = "unhealthy"
    SILENT = "silent"
    MISSED = "missed"
    CHANGING = "changing"
    FINE = "fine"
    ENDED = "ended"


@dataclass(frozen=True, kw_only=True)
class LoadNow:
    """An engine's last seconds; ``mode_share`` are shares of step time by mode, 0 to 1. An observed
    server may not tell ``kv_usage``."""

    rate_rps: float
    running: int
    waiting: int
    kv_usage: float | None
    is_healthy: bool
    mode_share: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, beats: Sequence[Heartbeat]) -> LoadNow | None:
        """The load in an engine's windows, newest last; None without any, which is not silence."""
        if not beats:
            return None
        seconds: Counter[str] = Counter()
        for beat in beats:
            for step in beat.steps:
                seconds[step["mode"]] += step["seconds"]
        total_s, stats = sum(seconds.values()), beats[-1].stats
        return cls(
            rate_rps=sum(b.arrived for b in beats) / sum(b.window_s for b in beats),
            running=stats.get("running", 0),
            waiting=stats.get("waiting", 0),
            kv_usage=stats.get("kv_usage"),
            is_healthy=stats.get("is_healthy", True),
            mode_share={m: s / total_s for m, s in sorted(seconds.items())} if total_s else {},
        )


@dataclass(frozen=True, kw_only=True)
class EngineOverview:
    """One engine. ``reason`` is the word or message that ``standing`` rests on."""

    engine: EngineView
    load: LoadNow | None
    window: LiveWindow | None
    standing: Standing
    reason: str


def fleet(uow: UnitOfWork, settings: ServiceSettings) -> list[EngineOverview]:
    """Every engine in order of registration, the first :data:`MOST_ENGINES`."""
    rows = uow.engines.list_page(PageRequest(limit=MOST_ENGINES)).items
    beats: dict[str, list[Heartbeat]] = defaultdict(list)
    for beat in uow.engines.list_loads(since=utc_now() - timedelta(seconds=NOW_S)):
        beats[beat.engine_id].append(beat)
    sights = {}
    if any(row.system is not None for row in rows):
        for engine, server in uow.servers.list_all():
            sights[engine.id] = _sight(server)
            beats[engine.id] = list(_beats_now(uow, engine, settings))
    engine_ids = [row.id for row in rows]
    decisions = uow.decisions.find_last_of(engine_ids)
    versions = uow.policies.desired_of(engine_ids)
    return [
        _overview(
            row,
            beats[row.id],
            decisions.get(row.id),
            versions[row.id],
            settings,
            sights.get(row.id, ""),
        )
        for row in rows
    ]


def one(uow: UnitOfWork, engine_id: str, settings: ServiceSettings) -> EngineOverview:
    """One engine as in :func:`fleet`.

    Raises:
        NotFoundError: no such engine.
    """
    row = uow.engines.get(engine_id)
    beats = _beats_now(uow, row, settings)
    version = uow.policies.get(row.id, row.desired_version)
    server = None if row.system is None else uow.servers.find(row.id)
    sight = "" if server is None else _sight(server)
    return _overview(row, beats, uow.decisions.find_last(row.id), version, settings, sight)


def _beats_now(uow: UnitOfWork, row: EngineRow, settings: ServiceSettings) -> Sequence[Heartbeat]:
    """Its last few windows; those of an observed engine are as long as lie between two looks."""
    now_s = NOW_S if row.system is None else settings.control_window_s
    return uow.engines.list_heartbeats(row.id, since=utc_now() - timedelta(seconds=now_s))


def _sight(server: ServerRow) -> str:
    """Why an observed engine is not seen; empty where it is."""
    condition = Condition.from_json(server.condition)
    return "" if condition.sight is Sight.SEEN else condition.detail or condition.sight


def _overview(
    row: EngineRow,
    beats: Sequence[Heartbeat],
    decision: DecisionRow | None,
    version: PolicyVersion,
    settings: ServiceSettings,
    sight: str,
) -> EngineOverview:
    view, load, window = engines.view(row, settings), LoadNow.of(beats), _fresh(row, settings)
    standing, reason = _standing(view, load, window, decision, version)
    if sight and standing in (Standing.SILENT, Standing.ENDED):  # it is looked at still
        standing, reason = Standing.SILENT, sight
    return EngineOverview(engine=view, load=load, window=window, standing=standing, reason=reason)


def _fresh(row: EngineRow, settings: ServiceSettings) -> LiveWindow | None:
    """What the controller saw last, unless that is too old."""
    window = None if row.live_window is None else LiveWindow.from_json(row.live_window)
    since_s = utc_now().timestamp() - settings.fresh_s
    return window if window is not None and window.seen_at_s >= since_s else None


def _standing(
    engine: EngineView,
    load: LoadNow | None,
    window: LiveWindow | None,
    decision: DecisionRow | None,
    version: PolicyVersion,
) -> tuple[Standing, str]:
    if engine.last_heartbeat_at is None:
        return Standing.ENDED, ""
    if not engine.is_alive:
        return Standing.SILENT, ""
    if load is not None and not load.is_healthy:
        return Standing.UNHEALTHY, ""
    if version.ack_state is AckState.REFUSED:
        return Standing.REFUSED, version.ack_message or ""
    if decision is not None and window is not None and decision.action == Action.RAISE_CONDITION:
        return Standing.CONDITION, decision.reason
    if engine.applied_version != engine.desired_version:
        return Standing.CHANGING, f"version {engine.desired_version}"
    if decision is not None and window is not None and decision.reason.startswith("sla_missed"):
        return Standing.MISSED, decision.reason
    return Standing.FINE, ""
