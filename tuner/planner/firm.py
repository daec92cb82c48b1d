"""The tightest value that holds when applied, where to look at one is to plan.

Values are told in few digits. A search among a few likely plans finds the neighbourhood; then all
plans are asked. The value that is named was passed by all plans together, and what is
``TIGHTER`` times tighter was not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from engine.spec.plan import ParallelPlan
from policies.points import OperatingPoint
from tuner.capacity.search import TIGHTER, edge

# Where all plans find more than the likely ones, these learn a plan; so often at most.
MOST_ROUNDS = 12

# What a plan finds at a value, with the plans it may choose from (None: all).
Look = Callable[[float, frozenset[ParallelPlan] | None], OperatingPoint | None]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Values from the loosest that may be named to the one asked for, which is missed.

    A share is of the way of tightening: 1 is what was asked for, less is looser, never above.
    ``share`` and ``value`` turn one into the other, ``told`` rounds a value to the next looser one
    with few digits, ``tighter`` is a value that is just too tight if the edge is near.
    """

    least_share: float
    share: Callable[[float], float]
    value: Callable[[float], float]
    told: Callable[[float], float]
    tighter: Callable[[float], float]


@dataclass(kw_only=True)
class Firm:
    """A search with its memory. ``likely`` are plans that may win, and grow by those that do."""

    scale: Scale
    look: Look
    likely: set[ParallelPlan]
    _all: dict[float, OperatingPoint | None] = field(default_factory=dict)
    _few: dict[float, bool] = field(default_factory=dict)

    def find(self, start: float) -> tuple[float, OperatingPoint] | None:
        """The tightest value and what it is met by; None: not even the loosest is met.

        ``start`` is the share to look at first.
        """
        share = self._edge(start)
        value = self._told(self.scale.least_share if share is None else share)
        for _ in range(MOST_ROUNDS):
            point = self._by_all(value)
            if point is None:
                share = self.scale.share(value) / TIGHTER
                if share < self.scale.least_share:
                    return None
                value = self._told(share)
                continue
            tight = self.scale.tighter(value)
            if self.scale.share(tight) >= 1 or self._by_all(tight) is None:
                return value, point
            share = self._edge(self.scale.share(tight))
            value = self._told(max(share or 0.0, self.scale.share(tight)))
        return self._last_known()

    def _edge(self, start: float) -> float | None:
        limits = (self.scale.least_share, 1.0)
        return edge(lambda share: self._by_few(self._told(share)), limits, start=start)

    def _told(self, share: float) -> float:
        return self.scale.told(self.scale.value(share))

    def _by_few(self, value: float) -> bool:
        """Whether the likely plans find something; where they do not, they may once they grow."""
        if value in self._all:
            return self._all[value] is not None
        if not self._few.get(value, False):
            found = self.look(value, frozenset(self.likely) if self.likely else None)
            self._few[value] = found is not None
        return self._few[value]

    def _by_all(self, value: float) -> OperatingPoint | None:
        if value not in self._all:
            found = self._all[value] = self.look(value, None)
            if found is not None:
                self.likely.add(found.settings.plan)
        return self._all[value]

    def _last_known(self) -> tuple[float, OperatingPoint] | None:
        """The tightest value of those that all plans together met."""
        met = [(value, point) for value, point in self._all.items() if point is not None]
        return max(met, key=lambda pair: self.scale.share(pair[0]), default=None)
