"""What an engine's page reads at each look."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from api.dashboard.observed import Outside, OutsideReader
from api.dashboard.visit import Visit
from api.documents.live_series import Bin, LiveSeries
from api.services import overview
from api.services.overview import EngineOverview
from policies.sla import Sla
from store import UnitOfWork
from store.models import DecisionRow, PolicyVersion
from store.models.base import utc_now
from store.paging import PageRequest

# What the page shows of the time before it was opened.
BEFORE_S = 120


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one look at the engine found."""

    found: EngineOverview
    bins: list[Bin]
    step_ms: dict[str, list[tuple[int, float]]]
    decisions: list[DecisionRow]
    versions: list[PolicyVersion]
    outside: Outside | None
    rollout_id: str | None


@dataclass(frozen=True)
class Past:
    """What looks before this one have read."""

    series: LiveSeries = field(default_factory=LiveSeries)
    outside: OutsideReader = field(default_factory=OutsideReader)


def look(uow: UnitOfWork, visit: Visit, engine_id: str, past: Past) -> Seen:
    settings, series = visit.context.settings, past.series
    found = overview.one(uow, engine_id, settings)
    is_seen = uow.servers.find(engine_id) is not None
    sla = found.engine.sla
    since = series.since or utc_now() - timedelta(seconds=BEFORE_S)
    beats = uow.engines.list_heartbeats(engine_id, since=since)
    series.feed(beats, Sla.parse(sla) if sla else None)
    page = PageRequest(limit=50)
    return Seen(
        found=found,
        bins=series.bins(),
        step_ms=series.step_ms(),
        decisions=list(uow.decisions.list_page(page, engine_id=engine_id).items),
        versions=list(uow.policies.list_page(engine_id, page).items),
        outside=past.outside.read(uow, engine_id, settings) if is_seen else None,
        rollout_id=_rollout_of(uow, engine_id),
    )


def _rollout_of(uow: UnitOfWork, engine_id: str) -> str | None:
    """The rollout that is on its way there."""
    found = uow.rollouts.find_under_way(engine_id)
    return None if found is None else found.id
