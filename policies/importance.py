"""How much each knob had to do with how fast operating points were.

The share is that of the variance of the latency score that a knob explains by itself, less what
as many groups of random points would explain (epsilon squared; Kelley, "An Unbiased Correlation
Ratio Measure", 1935). It says what mattered among the points at hand, not what would elsewhere.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.spec.settings import Settings
from policies.points import OperatingPoint
from policies.sla import Sla

Value = int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class Level:
    """Points with one value of a knob: how many, and their latency over the SLA's bounds
    (geometric mean)."""

    value: Value
    num_points: int
    latency_over_bound: float


@dataclass(frozen=True, kw_only=True)
class Importance:
    """One knob: the share of variance it explains by itself, and how each value did."""

    knob: str
    share: float
    levels: tuple[Level, ...]

    def to_json(self) -> dict[str, Any]:
        levels = [
            {
                "value": level.value,
                "num_points": level.num_points,
                "latency_over_bound": level.latency_over_bound,
            }
            for level in self.levels
        ]
        return {"knob": self.knob, "share": self.share, "levels": levels}


def importances(points: Sequence[OperatingPoint], sla: Sla) -> tuple[Importance, ...]:
    """Every knob that was varied, the most important first; points without latencies are left
    out."""
    scores = [(point, point.latency_score(sla)) for point in points]
    known = [(_knobs(p.settings), score) for p, score in scores if math.isfinite(score)]
    found = []
    for knob in known[0][0] if known else ():
        groups: dict[Value, list[float]] = defaultdict(list)
        for knobs, score in known:
            groups[knobs[knob]].append(score)
        if len(groups) > 1:
            found.append(_importance(knob, groups))
    return tuple(sorted(found, key=lambda one: (-one.share, one.knob)))


def _knobs(settings: Settings) -> dict[str, Value]:
    plan, caps = settings.plan, settings.caps
    return {
        "dp": plan.dp,
        "pp": plan.pp,
        "sp": plan.sp,
        "tp": plan.tp,
        "shift": plan.shift,
        "threshold_tokens": settings.threshold_tokens if plan.shift else None,
        "has_rungs": bool(settings.rung_thresholds) if len(plan.modes) > 2 else None,
        "max_num_seqs": caps.max_num_seqs,
        "max_num_batched_tokens": caps.max_num_batched_tokens,
        "max_step_ms": caps.max_step_ms,
    }


def _importance(knob: str, groups: dict[Value, list[float]]) -> Importance:
    scores = [score for group in groups.values() for score in group]
    mean = math.fsum(scores) / len(scores)
    total = math.fsum((score - mean) ** 2 for score in scores)
    means = {value: math.fsum(group) / len(group) for value, group in groups.items()}
    between = math.fsum(len(g) * (means[value] - mean) ** 2 for value, g in groups.items())
    levels = tuple(
        Level(value=v, num_points=len(groups[v]), latency_over_bound=math.exp(means[v]))
        for v in sorted(groups, key=_order)
    )
    num_free = len(scores) - len(groups)
    if not num_free or total <= 0:
        return Importance(knob=knob, share=0.0, levels=levels)
    by_chance = (len(groups) - 1) * (total - between) / num_free
    share = min(1.0, max(0.0, (between - by_chance) / total))
    return Importance(knob=knob, share=share, levels=levels)


def _order(value: Value) -> tuple[bool, float]:
    return value is not None, 0.0 if value is None else float(value)
