"""What a server that is not ours counted in one window, and how that stands against an SLA.

Its latencies come in buckets: a share within a bound is exact only where the bound is an edge, so
attainment has a low and a high end. Requests whose prompts ended and those that ended themselves
are counted by the server separately, and so are these shares; how many requests met both lies
between the bounds of Frechet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from engine.spec.measurement import Distribution, Fidelity, Measurement
from policies.attainment import Check, SlaReport
from policies.constraint import Constraint, Metric, Percentile
from policies.decision import LoadWindow
from policies.errors import PolicyInputError
from policies.histogram import Bounded, Histogram
from policies.observation import MAX_COUNT, MAX_WINDOW_S, MIN_WINDOW_S, Observation
from policies.sla import Sla

LATENCIES = ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms")
COUNTS = (
    "arrived", "finished", "failed", "input_tokens", "output_tokens", "lengths_of",
    "ended_input_tokens", "ended_output_tokens", "prefix_queries", "prefix_hits",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ServerWindow:
    """``window_s`` seconds of a server by its own counters.

    ``arrived``: requests that came. ``finished``: those that ended, ``failed`` of them by an error.
    ``input_tokens`` were read and ``output_tokens`` made in it. ``lengths_of`` requests that ended
    had ``ended_input_tokens`` and ``ended_output_tokens``. Of ``prefix_queries`` tokens (or blocks)
    that the prefix cache was asked for it had ``prefix_hits``. A latency that it has no histogram
    of is None.

    Raises:
        PolicyInputError: numbers that cannot be.
    """

    window_s: float
    arrived: float
    finished: float
    failed: float = 0.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    lengths_of: float = 0.0
    ended_input_tokens: float = 0.0
    ended_output_tokens: float = 0.0
    prefix_queries: float = 0.0
    prefix_hits: float = 0.0
    ttft_ms: Histogram | None = None
    tpot_ms: Histogram | None = None
    itl_ms: Histogram | None = None
    e2e_ms: Histogram | None = None

    def __post_init__(self) -> None:
        if not MIN_WINDOW_S <= self.window_s <= MAX_WINDOW_S:
            raise PolicyInputError(f"server window: window_s={self.window_s}: out of range")
        for name in COUNTS:
            if not 0 <= getattr(self, name) < math.inf:
                raise PolicyInputError(f"server window: {name}={getattr(self, name)}: below 0")
        if self.arrived > MAX_COUNT:
            raise PolicyInputError(f"server window: arrived={self.arrived}: more than {MAX_COUNT}")

    @property
    def mean_lengths(self) -> tuple[float, float] | None:
        """Mean input and output tokens; None where nothing ended."""
        if not self.lengths_of:
            return None
        return self.ended_input_tokens / self.lengths_of, self.ended_output_tokens / self.lengths_of

    def plus(self, other: ServerWindow) -> ServerWindow:
        """Both, one after the other. A histogram that only one has, or of other edges (the server
        came back as another version), is left out."""
        sums: dict[str, Any] = {
            name: getattr(self, name) + getattr(other, name) for name in ("window_s", *COUNTS)
        }
        both: dict[str, Any] = {
            name: _joined(getattr(self, name), getattr(other, name)) for name in LATENCIES
        }
        return ServerWindow(**sums, **both)

    @property
    def judges_tpot_by_itl(self) -> bool:
        """Whether the server counts gaps between tokens, and no mean of each request's."""
        return self.tpot_ms is None and self.itl_ms is not None

    def histogram(self, metric: Metric) -> Histogram | None:
        """The histogram of a latency; None where the server has none, or an empty one. Gaps between
        tokens stand for TPOT where that is not counted: they spread wider than their means."""
        is_itl = metric is Metric.TPOT_MS and self.judges_tpot_by_itl
        found: Histogram | None = self.itl_ms if is_itl else getattr(self, metric.value)
        return found if found is not None and found.count else None


def observe_server(
    windows: Sequence[ServerWindow], sla: Sla | None, *, age_s: float
) -> Observation | None:
    """One observation of all ``windows``, the last of which ended ``age_s`` seconds ago. None
    without any: no data is not silence."""
    if not windows:
        return None
    window = reduce(ServerWindow.plus, windows)
    report = None if sla is None else judge_server(sla, window)
    lengths = window.mean_lengths or (None, None)
    load = LoadWindow(
        window_s=window.window_s,
        rate_rps=window.arrived / window.window_s,
        mean_input_tokens=lengths[0],
        mean_output_tokens=lengths[1],
        num_requests=round(window.finished),
        is_sla_met=None if report is None else report.is_met,
        age_s=age_s,
    )
    nothing = Measurement(fidelity=Fidelity.MEASURED, timings=(), driver_lag_ms=Distribution.of(()))
    return Observation(
        load=load, measurement=nothing, report=report, metrics=_metrics(window, report)
    )


def attainment_of(sla: Sla, window: ServerWindow) -> Bounded | None:
    """The share of requests that met every bound on a request; failed ones are misses.

    ``value`` takes the bounds as independent. None where one of them cannot be judged.
    """
    shares: list[Bounded] = []
    for constraint in sla.per_request:
        histogram = window.histogram(constraint.metric)
        share = None if histogram is None else histogram.share_within(constraint.bound)
        if share is None:
            return None
        shares.append(share)
    if not shares or not window.finished:
        return None
    kept = 1 - min(window.failed / window.finished, 1.0)
    return Bounded(
        low=kept * max(0.0, 1 - math.fsum(1 - share.low for share in shares)),
        value=kept * math.prod(share.value for share in shares),
        high=kept * min(share.high for share in shares),
    )


def judge_server(sla: Sla, window: ServerWindow) -> SlaReport | None:
    """As :func:`policies.attainment.judge`, from buckets. A constraint on what the server does not
    count is not applicable; None where no other is left, or nothing ended."""
    attainment = attainment_of(sla, window)
    checks = tuple(_check(constraint, window, attainment) for constraint in sla.per_run)
    if not window.finished or not any(check.is_applicable for check in checks):
        return None
    met = 0.0 if attainment is None else attainment.value * window.finished
    return SlaReport(
        attainment=None if attainment is None else attainment.value,
        goodput_rps=met / window.window_s,
        checks=checks,
        met=round(met),
        invalid=0,
    )


def _check(constraint: Constraint, window: ServerWindow, attainment: Bounded | None) -> Check:
    actual = _actual(constraint, window, attainment)
    return Check(
        constraint=constraint,
        actual=actual,
        is_applicable=actual is not None,
        is_met=actual is not None and constraint.is_met_by(actual),
    )


def _actual(
    constraint: Constraint, window: ServerWindow, attainment: Bounded | None
) -> float | None:
    match constraint.metric:
        case Metric.ATTAINMENT:
            return None if attainment is None else attainment.value
        case Metric.THROUGHPUT:
            return window.output_tokens / window.window_s
        case Metric.THROUGHPUT_TOTAL:
            return (window.input_tokens + window.output_tokens) / window.window_s
        case _:
            histogram = window.histogram(constraint.metric)
            return None if histogram is None else _statistic(histogram, constraint.percentile)


def _statistic(histogram: Histogram, percentile: Percentile | None) -> float | None:
    if percentile is Percentile.MEAN:
        return histogram.mean
    percent = 100.0 if percentile is None else percentile.percent
    found = None if percent is None else histogram.percentile(percent)
    return None if found is None else found.value


def _metrics(window: ServerWindow, report: SlaReport | None) -> dict[str, float]:
    """Every number by the name that an SLA gives it, finite ones only."""
    found: dict[str, float | None] = {
        "throughput_tokens_per_s": window.output_tokens / window.window_s,
        "throughput_total_tokens_per_s": (window.input_tokens + window.output_tokens)
        / window.window_s,
    }
    for metric in (m for m in Metric if m.is_latency):
        if (histogram := window.histogram(metric)) is not None:
            found |= {f"{p}_{metric}": _statistic(histogram, p) for p in Percentile}
    if report is not None:
        found |= {"attainment": report.attainment, "goodput_rps": report.goodput_rps}
    return {k: v for k, v in found.items() if v is not None and math.isfinite(v)}


def _joined(one: Histogram | None, other: Histogram | None) -> Histogram | None:
    if one is None or other is None or one.edges != other.edges:
        return None
    return one.plus(other)
