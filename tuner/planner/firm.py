"""The tightest value that holds when applied, where to be sure is to plan.

Values are told in few digits. Settings that are likely to win find the neighbourhood, a few
simulations a look. Then all plans are asked at what is ``TIGHTER`` times tighter: if one is found,
its settings are likely too, and the search goes on from there; if none is, that is the edge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from engine.spec.settings import Settings
from policies.points import OperatingPoint
from tuner.capacity.search import TIGHTER, edge

# All plans may find more than the likely settings so often.
MOST_ROUNDS = 12


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Values from the loosest that may be named to the one asked for, which is missed.

    Shares order them: ``least_share`` is the loosest, 1 what was asked for. ``share`` and ``value``
    turn one into the other, ``told`` rounds a value to the next looser one with few digits.
    ``tighter`` is what must be missed for a value to be named.
    """

    least_share: float
    share: Callable[[float], float]
    value: Callable[[float], float]
    told: Callable[[float], float]
    tighter: Callable[[float], float]


def tightened(value: float, *, is_lower: bool) -> float:
    """``TIGHTER`` times tighter."""
    return value / TIGHTER if is_lower else value * TIGHTER


@dataclass(kw_only=True)
class Firm:
    """One search. ``by_all`` plans at a value; ``by_one`` is how settings stand there, None where
    they are not dependable. ``likely`` are settings to ask first; it grows by what wins.
    """

    scale: Scale
    by_all: Callable[[float], OperatingPoint | None]
    by_one: Callable[[Settings, float], OperatingPoint | None]
    likely: list[Settings]
    _seen: dict[tuple[Settings, float], OperatingPoint | None] = field(default_factory=dict)

    def find(self, start: float) -> tuple[float, OperatingPoint] | None:
        """The tightest value and what it is met by; None: not even the loosest is met.

        ``start`` is the share to look at first.
        """
        found = self._by_likely(start)
        if found is None:
            loosest = self.scale.told(self.scale.value(self.scale.least_share))
            if (point := self.by_all(loosest)) is None:
                return None
            self._learn(point)
            found = self._by_likely(start) or (loosest, point)
        for _ in range(MOST_ROUNDS):
            tight = self.scale.tighter(found[0])
            if self.scale.share(tight) >= 1 or (point := self.by_all(tight)) is None:
                break
            self._learn(point)
            found = self._by_likely(self.scale.share(tight)) or found
            if self.scale.share(found[0]) < self.scale.share(tight):
                rounded = self.scale.told(tight)
                again = self._look(rounded)
                found = (tight, point) if again is None else (rounded, again)
        return found

    def _learn(self, point: OperatingPoint) -> None:
        if point.settings not in self.likely:
            self.likely.append(point.settings)

    def _by_likely(self, start: float) -> tuple[float, OperatingPoint] | None:
        """The tightest value that the likely settings meet, at best from ``start`` on."""
        limits = (self.scale.least_share, 1.0)
        share = edge(lambda at: self._look(self._told(at)) is not None, limits, start=start)
        if share is None:
            return None
        point = self._look(self._told(share))
        assert point is not None, "it was just met"
        return self._told(share), point

    def _told(self, share: float) -> float:
        return self.scale.told(self.scale.value(share))

    def _look(self, value: float) -> OperatingPoint | None:
        for settings in self.likely:
            if (settings, value) not in self._seen:
                self._seen[settings, value] = self.by_one(settings, value)
            if (point := self._seen[settings, value]) is not None:
                return point
        return None
