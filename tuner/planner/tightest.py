"""The tightest value (of a bound, or of the load) with which planning finds settings.

Only planning with a value makes sure that it holds, and it is slow. So settings that are likely to
win find the neighbourhood, at a few simulations each. Then all plans are asked about a value
``TIGHTER`` times tighter: if one meets it, its settings count as likely, too, and the search goes
on from there; if none does, that is the edge. Values are rounded to few digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.constraint import Constraint, Op
from policies.numbers import short_bound
from policies.points import OperatingPoint
from tuner.capacity.search import TIGHTER, edge
from tuner.workload.workload import Workload

# A bound is relaxed at most to this many times itself, and a load lowered at most to this share of
# itself.
MOST_RELAXED = 1000.0
LEAST_LOAD = 1 / 256
# How often all plans may find more than the likely settings did.
MOST_ROUNDS = 12


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Values from the loosest that may be named to the one asked for, which is missed.

    Shares order them: ``least_share`` is the loosest, 1 what was asked for. ``share`` and ``value``
    turn one into the other, ``rounded`` is the next looser value with few digits.
    ``tighter`` is what must be missed for a value to be named.
    """

    least_share: float
    share: Callable[[float], float]
    value: Callable[[float], float]
    rounded: Callable[[float], float]
    tighter: Callable[[float], float]


def load_scale(workload: Workload) -> Scale:
    """Factors of a load, in three digits, or in whole clients."""
    if (closed := workload.closed) is None:
        return Scale(
            least_share=LEAST_LOAD,
            share=lambda factor: factor,
            value=lambda share: share,
            rounded=lambda factor: float(short_bound(factor, Op.AT_LEAST)),
            tighter=lambda factor: factor * TIGHTER,
        )
    clients = closed.concurrency
    return Scale(
        least_share=1 / clients,
        share=lambda factor: factor,
        value=lambda share: share,
        rounded=lambda factor: max(1, math.floor(factor * clients + 1e-9)) / clients,
        tighter=lambda factor: max(factor * TIGHTER, factor + 1 / clients),
    )


def bound_scale(constraint: Constraint) -> Scale:
    """Bounds of a constraint, in three digits."""
    asked, op = constraint.bound, constraint.op
    if op is Op.AT_MOST:
        return Scale(
            least_share=1 / MOST_RELAXED,
            share=lambda bound: asked / bound,
            value=lambda share: asked / share,
            rounded=lambda bound: float(short_bound(bound, op)),
            tighter=lambda bound: bound / TIGHTER,
        )
    return Scale(
        least_share=1 / MOST_RELAXED,
        share=lambda bound: bound / asked,
        value=lambda share: asked * share,
        rounded=lambda bound: float(short_bound(bound, op)),
        tighter=lambda bound: bound * TIGHTER,
    )


@dataclass(kw_only=True)
class TightestSearch:
    """One search. ``by_all`` plans at a value (all plans, or the given one); ``by_one`` simulates
    single settings at a value; both return None where nothing is dependable. ``likely`` are the
    settings to ask first; winners are added.
    """

    scale: Scale
    by_all: Callable[[float, ParallelPlan | None], OperatingPoint | None]
    by_one: Callable[[Settings, float], OperatingPoint | None]
    likely: list[Settings]
    _seen: dict[tuple[Settings, float], OperatingPoint | None] = field(default_factory=dict)
    _is_wary: bool = False

    def find(self, start: float) -> tuple[float, OperatingPoint] | None:
        """The tightest value, and the point that meets it when planned; None: not even the loosest
        value is met. ``start`` is the share to look at first.
        """
        found = self._by_likely(start) or self._by_all_at_loosest(start)
        proven: tuple[float, OperatingPoint] | None = None
        for _ in range(MOST_ROUNDS):
            if found is None:
                break
            value, point = found
            planned = self.by_all(value, point.settings.plan) or self.by_all(value, None)
            if planned is None:
                self._doubt()
                found = self._by_likely(start) or self._by_all_at_loosest(start)
                continue
            proven = value, planned
            tight = self.scale.tighter(value)
            if self.scale.share(tight) >= 1 or (better := self.by_all(tight, None)) is None:
                break
            self._learn(better)
            found = self._from(tight, better)
        return proven

    def _by_all_at_loosest(self, start: float) -> tuple[float, OperatingPoint] | None:
        loosest = self._rounded(self.scale.least_share)
        if (point := self.by_all(loosest, None)) is None:
            return None
        self._learn(point)
        return self._by_likely(start) or (loosest, point)

    def _from(self, tight: float, point: OperatingPoint) -> tuple[float, OperatingPoint]:
        """The tightest value that likely settings meet, or the rounded one of ``tight``, which
        ``point`` meets."""
        share = self.scale.share(tight)
        found = self._by_likely(share)
        if found is None or self.scale.share(found[0]) < share:
            self._doubt()
            found = self._by_likely(share)
        is_tight = found is not None and self.scale.share(found[0]) >= share
        return found if found is not None and is_tight else (self.scale.rounded(tight), point)

    def _doubt(self) -> None:
        """Single settings seemed to manage what no plan did, or to fail at what a plan does: from
        now on, plan at each look."""
        self._seen.clear()
        self._is_wary = True

    def _learn(self, point: OperatingPoint) -> None:
        if point.settings not in self.likely:
            self.likely.append(point.settings)

    def _by_likely(self, start: float) -> tuple[float, OperatingPoint] | None:
        """The tightest value that the likely settings meet, at best from ``start`` on."""
        limits = (self.scale.least_share, 1.0)
        share = edge(lambda at: self._look(self._rounded(at)) is not None, limits, start=start)
        if share is None:
            return None
        point = self._look(self._rounded(share))
        assert point is not None, "it was just met"
        return self._rounded(share), point

    def _rounded(self, share: float) -> float:
        return self.scale.rounded(self.scale.value(share))

    def _look(self, value: float) -> OperatingPoint | None:
        for settings in self.likely:
            if (settings, value) not in self._seen:
                self._seen[settings, value] = (
                    self.by_all(value, settings.plan)
                    if self._is_wary
                    else self.by_one(settings, value)
                )
            if (point := self._seen[settings, value]) is not None:
                return point
        return None
