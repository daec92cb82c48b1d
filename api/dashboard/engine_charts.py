"""Charts of an engine's page: latencies against the SLA, step times, load, KV cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial

from nicegui import ui

from api.dashboard import charts
from api.dashboard.engine_seen import Seen
from api.dashboard.layout import card, chart, redraw
from api.dashboard.replicas import settings_in_force
from api.documents.live_series import BIN_S
from policies.constraint import Metric
from policies.sla import Sla
from store.models import DecisionRow
from store.models.base import utc_now

PERCENTILES = ("p50", "p95", "p99")
LATENCIES = {
    "Time to first token (TTFT)": Metric.TTFT_MS,
    "Time per output token (TPOT)": Metric.TPOT_MS,
    "Gap between tokens (ITL)": Metric.ITL_MS,
}
NO_BEAT = "no heartbeat has come"
NO_METRICS = "no metrics have arrived"
Options = Callable[[Seen], charts.Json]


class Charts:
    """Latencies, steps, KV cache and queue. Drawn again once for each bin of time."""

    def __init__(self, seen: Seen) -> None:
        self._drawn: list[tuple[ui.echart, Options]] = []
        self._drawn_s = time.monotonic()
        with ui.element("div").classes("grid3"):
            for title, metric in LATENCIES.items():
                short = str(metric).removesuffix("_ms").upper()
                options = partial(_latency, metric=metric)
                self._add(seen, title, f"{short} in ms over time", options)
        with ui.element("div").classes("grid2"):
            steps = self._add(seen, "Step time of each mode", "step time in ms by tokens", _steps)
            steps.set_visibility(seen.outside is None)  # of other servers nobody sees steps
            self._add(seen, "Load", "requests running and waiting, over time", _load)
            self._add(seen, "KV cache in use", "KV cache in use, in percent, over time", _kv)
            self._add(seen, "Requests arriving", "requests arriving per second, over time", _rate)

    def show(self, seen: Seen) -> None:
        if time.monotonic() - self._drawn_s < BIN_S:
            return
        self._drawn_s = time.monotonic()
        for drawn, options in self._drawn:
            redraw(drawn, options(seen))

    def _add(self, seen: Seen, title: str, label: str, options: Options) -> ui.element:
        """A card with a chart; ``label`` says what it shows to whoever does not see it."""
        with card(title) as found:
            self._drawn.append((chart(options(seen), label), options))
        return found


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
    return [(d.created_at, mark(d)) for d in seen.decisions if d.created_at >= begin]


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


def mark(row: DecisionRow) -> str:
    """What stands beside a decision's line in the charts, and in the table."""
    return f"#{row.id}"
