"""``/engines/ID``: one engine as it runs, what the controller did, and its policy."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from fastapi import Request
from nicegui import ui

from api.dashboard import charts, words
from api.dashboard.go_back import GoBack
from api.dashboard.layout import (
    Row,
    Text,
    card,
    chart,
    facts,
    frame,
    missing,
    page_path,
    poll,
    redraw,
    table,
)
from api.dashboard.observed import Outside, OutsideCard, OutsideReader
from api.dashboard.policy_editor import Offer, PolicyEditor
from api.dashboard.proposal import read_policy
from api.dashboard.replicas import Replicas, settings_in_force
from api.dashboard.visit import Visit
from api.documents.live_series import BIN_S, Bin, LiveSeries
from api.documents.reasons import ACTIONS, REJECTIONS, meaning
from api.services import overview
from api.services.overview import EngineOverview
from policies.constraint import Metric
from policies.sla import Sla
from store import NotFoundError, UnitOfWork
from store.models import DecisionRow, PolicyVersion
from store.models.base import utc_now
from store.paging import PageRequest

PATH, TITLE = "/engines/{engine_id}", "Engine · Gearshift"
# What the page shows of the time before it was opened.
BEFORE_S = 120
PERCENTILES = ("p50", "p95", "p99")
FACTS = (
    "Requests/s",
    "Running / waiting",
    "KV cache in use",
    "Attainment, last 15 s",
    "Step time by mode",
    "Model",
    "SLA",
    "Settings",
)
DECISIONS = (
    ("mark", "Mark"), ("at", "At"), ("did", "Controller"), ("why", "Why"), ("saw", "Saw"),
    ("not", "Not taken"),
)  # fmt: skip
NO_BEAT = "no heartbeat has come"
NO_METRICS = "its metrics have not come"
NO_DECISION = (
    "None: the controller works on engines that run a recommendation. Apply one from a tuning job."
)
VERSIONS = (
    ("version", "Version"), ("at", "At"), ("by", "By"), ("why", "Why"), ("settings", "Settings"),
    ("ack", "Engine"),
)  # fmt: skip


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


async def show(request: Request, engine_id: str) -> None:
    """The page."""
    visit, past = Visit.of(request), _Past()
    try:
        seen = await visit.read(lambda uow: _look(uow, visit, engine_id, past))
        policy = await visit.read(lambda uow: read_policy(uow, engine_id))
    except NotFoundError as error:
        missing(request, visit, str(error), back=("/", "fleet"))
        return
    with frame(request, visit, seen.found.engine.name, back=("/", "fleet")):
        head = _Head(seen)
        outside = replicas = None
        if seen.outside is not None:
            with card("Observed server"):
                outside = OutsideCard(seen.outside)
        drawn = _Charts(seen)
        if seen.outside is None:
            with card("Replicas"):
                replicas = Replicas(visit, engine_id)
                replicas.show(settings_in_force(seen.found.engine.effective_policy))
        with card("What the controller decided"):
            decisions = table(DECISIONS, _decisions(seen), none=NO_DECISION, page=8)
        with card("Policy"):
            editor = PolicyEditor(visit, policy, _offer(seen))
        with card("Versions of the policy"):
            versions = table(VERSIONS, _versions(seen), page=8)
            back = GoBack(visit, engine_id)
            back.show(seen.versions)

    async def refresh() -> None:
        now = await visit.read(lambda uow: _look(uow, visit, engine_id, past))
        head.show(now)
        drawn.show(now)
        if outside is not None and now.outside is not None:
            outside.show(now.outside)
        if replicas is not None:
            replicas.show(settings_in_force(now.found.engine.effective_policy))
        decisions.show_rows(_decisions(now))
        versions.show_rows(_versions(now))
        back.show(now.versions)
        editor.note_version(now.found.engine.desired_version)

    poll(refresh)


@dataclass(frozen=True)
class _Past:
    """What looks before this one have read."""

    series: LiveSeries = field(default_factory=LiveSeries)
    outside: OutsideReader = field(default_factory=OutsideReader)


def _look(uow: UnitOfWork, visit: Visit, engine_id: str, past: _Past) -> Seen:
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


def _offer(seen: Seen) -> Offer:
    outside = seen.outside
    is_restarted = outside is not None and outside.seen.restarts is not None
    return Offer.of(seen.found.engine, is_restarted=is_restarted)


class _Head:
    """How the engine stands, and its numbers now."""

    def __init__(self, seen: Seen) -> None:
        with ui.element("div").classes("row"):
            self._tag = Text("span", "", "tag")
            self._why = Text("span", "", "soft")
        with ui.element("p").classes("note warn").props('role="status"') as self._turns:
            Text("span", "A rollout is on its way here, which changes the policy by turns: ")
            self._rollout = ui.link("see how it goes", "/rollouts")
        with card():
            self._change = facts([(name, "") for name in FACTS])
        self.show(seen)

    def show(self, seen: Seen) -> None:
        found = seen.found
        tone, word, why = words.standing(found)
        self._tag.set_text(word)
        self._tag.classes(replace=f"tag {tone}")
        self._why.set_text(why)
        self._turns.set_visibility(seen.rollout_id is not None)
        if seen.rollout_id is not None:
            self._rollout.props["href"] = page_path("rollouts", seen.rollout_id)
        self._change(_facts(found, seen.bins))


def _facts(found: EngineOverview, bins: list[Bin]) -> list[str]:
    engine, load = found.engine, found.load
    judged = [b.attainment for b in bins[-15 // BIN_S :] if b.attainment is not None]
    attainment = found.window.attainment if found.window else None
    if attainment is None and judged:
        attainment = sum(judged) / len(judged)
    return [
        words.number(load.rate_rps if load else None),
        f"{load.running} / {load.waiting}" if load else words.NONE,
        words.share(load.kv_usage if load else None),
        words.share(attainment),
        words.mode_share(load.mode_share) if load else words.NONE,
        words.model_of(engine),
        engine.sla or "none: set one in the policy below",
        words.settings_of(engine.effective_policy),
    ]


class _Charts:
    """Latencies, steps, KV cache and queue. Drawn again once for each bin of time."""

    def __init__(self, seen: Seen) -> None:
        with ui.element("div").classes("grid3"):
            with card("Time to first token (TTFT)"):
                self._ttft = chart(
                    _latency(seen, Metric.TTFT_MS),
                    "TTFT in ms over time",
                )
            with card("Time per output token (TPOT)"):
                self._tpot = chart(
                    _latency(seen, Metric.TPOT_MS),
                    "TPOT in ms over time",
                )
            with card("Gap between tokens (ITL)"):
                self._itl = chart(
                    _latency(seen, Metric.ITL_MS),
                    "ITL in ms over time",
                )
        with ui.element("div").classes("grid2"):
            with card("Step time of each mode") as steps:
                self._steps = chart(_steps(seen), "step time in ms by tokens")
            steps.set_visibility(seen.outside is None)  # of other servers nobody sees steps
            with card("Load"):
                self._load = chart(_load(seen), "requests running and waiting, over time")
            with card("KV cache in use"):
                self._kv = chart(_kv(seen), "KV cache in use, in percent, over time")
            with card("Requests arriving"):
                self._rate = chart(_rate(seen), "requests arriving per second, over time")
        self._drawn_s = time.monotonic()

    def show(self, seen: Seen) -> None:
        if time.monotonic() - self._drawn_s < BIN_S:
            return
        self._drawn_s = time.monotonic()
        for drawn, options in (
            (self._ttft, _latency(seen, Metric.TTFT_MS)),
            (self._tpot, _latency(seen, Metric.TPOT_MS)),
            (self._itl, _latency(seen, Metric.ITL_MS)),
            (self._steps, _steps(seen)),
            (self._load, _load(seen)),
            (self._kv, _kv(seen)),
            (self._rate, _rate(seen)),
        ):
            redraw(drawn, options)


def _latency(seen: Seen, metric: Metric) -> charts.Json:
    series = {
        percentile: [(b.begin, b.metrics.get(f"{percentile}_{metric}")) for b in seen.bins]
        for percentile in PERCENTILES
    }
    return charts.over_time("ms", series, bounds=_bounds(seen, metric), marks=_marks(seen))


def _bounds(seen: Seen, metric: Metric) -> Mapping[str, float]:
    if not seen.found.engine.sla:
        return {}
    constraints = Sla.parse(seen.found.engine.sla).constraints
    return {f"SLA {c}": c.bound for c in constraints if c.metric is metric}


def _marks(seen: Seen) -> list[tuple[datetime, str]]:
    """Decisions that fall into what is drawn."""
    begin = seen.bins[0].begin if seen.bins else utc_now()
    return [(d.created_at, _mark(d)) for d in seen.decisions if d.created_at >= begin]


def _steps(seen: Seen) -> charts.Json:
    settings = settings_in_force(seen.found.engine.effective_policy)
    if settings is None:
        return charts.step_times(seen.step_ms, {})
    thresholds = {str(mode): tokens for mode, tokens in settings.rung_thresholds}
    if settings.plan.shift:
        thresholds["shift"] = settings.threshold_tokens
    return charts.step_times(seen.step_ms, thresholds)


def _load(seen: Seen) -> charts.Json:
    series = {
        "running": [(b.begin, float(b.running)) for b in seen.bins],
        "waiting": [(b.begin, float(b.waiting)) for b in seen.bins],
    }
    return charts.over_time("requests", series, marks=_marks(seen), none=_nothing(seen))


def _kv(seen: Seen) -> charts.Json:
    points = [(b.begin, b.kv_usage and b.kv_usage * 100) for b in seen.bins]
    none = "its page does not tell" if seen.bins else _nothing(seen)
    return charts.over_time("% of blocks", {"KV cache": points}, most=100, none=none)


def _rate(seen: Seen) -> charts.Json:
    points = [(b.begin, b.rate_rps) for b in seen.bins]
    series = {"arriving": points}
    return charts.over_time("requests/s", series, marks=_marks(seen), none=_nothing(seen))


def _nothing(seen: Seen) -> str:
    """Why there is nothing to draw: engines of ours report, observed servers are looked at."""
    return NO_BEAT if seen.outside is None else NO_METRICS


def _decisions(seen: Seen) -> list[Row]:
    return [
        {
            "key": row.id,
            "mark": _mark(row),
            "at": words.at(row.created_at),
            "did": _did(row),
            "why": meaning(row.reason),
            "saw": _saw(row),
            "not": _rejected(row),
        }
        for row in seen.decisions
    ]


def _mark(row: DecisionRow) -> str:
    """What stands beside a decision's line in the charts, and in the table."""
    return f"#{row.id}"


def _did(row: DecisionRow) -> str:
    band = "" if row.band_index is None else f" (load band {row.band_index})"
    version = "" if row.policy_version is None else f", version {row.policy_version}"
    return f"{ACTIONS.get(row.action, row.action)}{band}{version}"


def _saw(row: DecisionRow) -> str:
    rate = row.observed.get("rate_rps")
    return words.NONE if rate is None else f"{rate:.1f} requests/s"


def _rejected(row: DecisionRow) -> str:
    parts = [f"band {r['band_index']}: {REJECTIONS.get(r['why'], r['why'])}"
             for r in row.rejected]  # fmt: skip
    return "; ".join(parts) or words.NONE


def _versions(seen: Seen) -> list[Row]:
    return [
        {
            "key": row.version,
            "version": str(row.version),
            "at": words.at(row.created_at),
            "by": row.origin,
            "why": row.reason,
            "settings": words.settings_of(row.document),
            "ack": _ack(row),
        }
        for row in seen.versions
    ]


def _ack(row: PolicyVersion) -> dict[str, str] | str:
    tone = {"applied": "good", "refused": "bad"}.get(row.ack_state.value, "warn")
    took = "" if row.ack_seconds is None else f" in {row.ack_seconds:.2f} s"
    if row.ack_transition:
        took += f" ({row.ack_transition['way']})"
    message = f": {row.ack_message}" if row.ack_message else ""
    return {"text": row.ack_state.value, "tone": tone, "more": f"{took}{message}"}
