"""Operating points as clouds by verdict: dependable, of unknown certainty, too close, missed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum

from policies.constraint import Constraint, Metric
from policies.numbers import counted, short, short_beside
from policies.points import Estimate, OperatingPoint
from policies.sla import Sla
from policies.verdict import MIN_CHANCE, is_dependable, meets_in_run
from tuner.pictures.picture import Cloud, Colour, Point, Symbol

Finite = tuple[float, float]
# The place of a point in a panel; None: it has none there.
Placed = Callable[[OperatingPoint], Point | None]


class Verdict(StrEnum):
    """How a point stands; its words are the legend's."""

    DEPENDABLE = f"meets the SLA, P at least {MIN_CHANCE:g}"
    UNKNOWN = "meets the SLA in its run, P unknown"
    TOO_CLOSE = f"too close, P below {MIN_CHANCE:g}"
    MISSED = "misses the SLA"

    @classmethod
    def of(cls, point: OperatingPoint, sla: Sla) -> Verdict:
        if not meets_in_run(point, sla):
            return cls.MISSED
        if not _is_known(point):
            return cls.UNKNOWN
        return cls.DEPENDABLE if is_dependable(point, sla) else cls.TOO_CLOSE


LOOKS = {
    Verdict.DEPENDABLE: (Colour.GREEN, Symbol.DISC),
    Verdict.UNKNOWN: (Colour.SKY, Symbol.DISC),
    Verdict.TOO_CLOSE: (Colour.ORANGE, Symbol.RING),
    Verdict.MISSED: (Colour.BLACK, Symbol.CROSS),
}


def _is_known(point: OperatingPoint) -> bool:
    """Whether its chance is known; taken as exact, it would be 0 or 1."""
    return point.has_interval or bool(point.beliefs)


def clouds_of(points: Iterable[OperatingPoint], sla: Sla, place: Placed) -> tuple[Cloud, ...]:
    """One cloud per verdict that some point has."""
    found: dict[Verdict, list[Point]] = {verdict: [] for verdict in LOOKS}
    for point in points:
        if (placed := place(point)) is not None:
            found[Verdict.of(point, sla)].append(placed)
    return tuple(
        Cloud(label=f"{verdict} ({len(own)})", points=tuple(own), colour=colour, symbol=symbol)
        for verdict, (colour, symbol) in LOOKS.items()
        if (own := found[verdict])
    )


def chosen(label: str, placed: Point) -> Cloud:
    """A star around what was chosen."""
    return Cloud(label=label, points=(placed,), colour=Colour.RED, symbol=Symbol.STAR)


def ends_of(estimate: Estimate) -> Finite | None:
    """The ends of an interval that can be drawn."""
    ends = (estimate.low, estimate.high)
    return ends if all(map(math.isfinite, ends)) and estimate.low < estimate.high else None


def finite_of(metrics: Mapping[str, Estimate], key: str) -> Estimate | None:
    """The estimate, if it has a finite value."""
    estimate = metrics.get(key)
    return estimate if estimate is not None and math.isfinite(estimate.value) else None


def texts_of(point: OperatingPoint, sla: Sla) -> tuple[str, ...]:
    """What hovering over a point tells."""
    plan = point.settings.plan
    chance = f"{point.probability(sla):.2f}" if _is_known(point) else "unknown, no interval"
    lines = [
        str(point.settings),
        f"{counted(point.cost_devices, 'device')}, {counted(plan.dp, 'replica')}, {point.fidelity}",
        f"P(SLA met) {chance}",
    ]
    for constraint in sla.per_run:
        text = "not observed"
        if (estimate := point.metrics.get(constraint.key)) is not None:
            text = short_beside(estimate.value, constraint.bound)
            if estimate.low < estimate.high:
                text += f" ({short(estimate.low)} .. {short(estimate.high)})"
        lines.append(f"{constraint}: {text}")
    return tuple(lines)


def key_of(sla: Sla, metric: Metric) -> str:
    """The number that the SLA bounds on ``metric``, else its p95."""
    bounded = [c.key for c in _latencies(sla) if c.metric is metric]
    return bounded[0] if bounded else f"p95_{metric}"


def axis_label(key: str) -> str:
    """``p95_ttft_ms`` as an axis says it: ``p95 TTFT, ms``."""
    words = key.removesuffix("_ms").split("_")
    return f"{' '.join([*words[:-1], words[-1].upper()])}, ms"


def latency_keys(sla: Sla) -> tuple[str, ...]:
    """The latencies worth a panel: TTFT and TPOT, and whatever else the SLA bounds."""
    first = [key_of(sla, metric) for metric in (Metric.TTFT_MS, Metric.TPOT_MS)]
    return tuple(dict.fromkeys([*first, *(c.key for c in _latencies(sla))]))


def _latencies(sla: Sla) -> list[Constraint]:
    return [c for c in sla.per_run if c.metric.is_latency]
