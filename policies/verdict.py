"""The one rule for what may be recommended: the SLA met, and likely to be met again.

P(SLA met) is ``OperatingPoint.probability``. A point whose value meets every bound by a hair has P
= 0.5 and would miss the SLA in every second run, so the value alone never decides.
"""

from __future__ import annotations

from math import isinf

from policies.constraint import Constraint
from policies.numbers import short_beside
from policies.points import OperatingPoint
from policies.sla import Sla

MIN_CHANCE = 0.8
TOO_FEW = "too few requests"


def meets_in_run(point: OperatingPoint, sla: Sla) -> bool:
    """Whether the point's own values meet every bound; this says nothing about the next run."""
    return all(point.is_met(c) for c in sla.per_run)


def is_dependable(point: OperatingPoint, sla: Sla) -> bool:
    """Whether the point may be recommended: its values meet ``sla``, with at least ``MIN_CHANCE``
    that they will again."""
    return meets_in_run(point, sla) and point.probability(sla) >= MIN_CHANCE


def verdict(point: OperatingPoint, sla: Sla) -> str:
    """How the point stands, in words: dependable, too close or not proven, or what it misses."""
    missed = [c for c in sla.per_run if not point.is_met(c)]
    if missed:
        worst = min(missed, key=point.margin)
        return f"misses {missed_text(worst, point.actual(worst))}"
    if is_dependable(point, sla):
        return f"meets the SLA with headroom {point.headroom(sla):.2f}"
    short_of_requests = [
        c.key for c in sla.per_run if (b := point.belief(c)) and b.certainty < MIN_CHANCE
    ]
    why = "too close"
    if short_of_requests:  # its values may be far from the bounds
        keys = ", ".join(short_of_requests)
        why = f"{TOO_FEW} to show {keys} (more of them would, or a lower percentile)"
    return f"{why}: {too_unlikely(point, sla)}"


def missed_text(constraint: Constraint, actual: float | None) -> str:
    """A bound that is missed and what was found instead, as in ``p95_ttft_ms<=500 but 612``."""
    if actual is not None and isinf(actual):  # what failed has no latency, however long one waits
        return f"{constraint}: too many requests failed"
    found = "not observed" if actual is None else short_beside(actual, constraint.bound)
    return f"{constraint} but {found}"


def too_unlikely(point: OperatingPoint, sla: Sla) -> str:
    """The chance that falls short of the least one, in words."""
    return f"P(SLA met) {point.probability(sla):.2f} < {MIN_CHANCE:g}"
