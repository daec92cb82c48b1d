"""Latencies that somebody else counted in buckets: how many were within a bound, and how exact that
answer is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from policies.errors import PolicyInputError


@dataclass(frozen=True, kw_only=True)
class Bounded:
    """A number read from buckets: it lies from ``low`` to ``high``, and ``value`` is where it is if
    latencies are spread evenly within the bucket that decides."""

    low: float
    value: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """``counts`` of values up to each of ``edges``, above the one before; the last count, one more
    than there are edges, is of what lies above all of them. ``total`` is the sum of the values.

    Raises:
        PolicyInputError: edges that do not rise, or counts that cannot be.
    """

    edges: tuple[float, ...]
    counts: tuple[float, ...]
    total: float

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.edges) + 1:
            raise PolicyInputError("histogram: one count more than edges is needed")
        rises = all(after > before for before, after in pairwise(self.edges))
        if not rises or not all(map(math.isfinite, self.edges)):
            raise PolicyInputError("histogram: edges must rise and be finite")
        if any(not 0 <= count < math.inf for count in (*self.counts, self.total)):
            raise PolicyInputError("histogram: counts and total must be at least 0 and finite")

    @property
    def count(self) -> float:
        return math.fsum(self.counts)

    @property
    def mean(self) -> float | None:
        """None without values."""
        return self.total / self.count if self.count else None

    def since(self, before: Histogram) -> Histogram | None:
        """What was counted since ``before``; None if counting began anew in between, or with other
        edges."""
        counts = tuple(a - b for a, b in zip(self.counts, before.counts, strict=False))
        total = self.total - before.total
        if self.edges != before.edges or total < 0 or min(counts) < 0:
            return None
        return Histogram(edges=self.edges, counts=counts, total=total)

    def plus(self, other: Histogram) -> Histogram:
        """Both together.

        Raises:
            PolicyInputError: they have other edges.
        """
        if self.edges != other.edges:
            raise PolicyInputError("histogram: only those of the same edges can be added")
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return Histogram(edges=self.edges, counts=counts, total=self.total + other.total)

    def share_within(self, bound: float) -> Bounded | None:
        """The share of values up to ``bound`` (at least 0): exact where it is an edge. Above the
        last edge nobody knows; there the value is the low end. None without values."""
        if not self.count:
            return None
        below, start = 0.0, 0.0
        for edge, count in zip(self.edges, self.counts, strict=False):
            if bound < edge:
                part = (bound - start) / (edge - start) if edge > start else 0.0
                return self._shares(below, below + max(part, 0.0) * count, below + count)
            below, start = below + count, max(edge, 0.0)
            if bound == edge:
                return self._shares(below, below, below)
        return self._shares(below, below, self.count)

    def percentile(self, percent: float) -> Bounded | None:
        """The value that ``percent`` of all are within; ``high`` and ``value`` are infinite where
        it lies above the last edge. None without values."""
        if not self.count:
            return None
        wanted, below, start = self.count * percent / 100, 0.0, 0.0
        for edge, count in zip(self.edges, self.counts, strict=False):
            if count and below + count >= wanted:
                part = (wanted - below) / count
                return Bounded(low=start, value=start + part * (edge - start), high=edge)
            below, start = below + count, max(edge, 0.0)
        return Bounded(low=start, value=math.inf, high=math.inf)

    def _shares(self, low: float, value: float, high: float) -> Bounded:
        whole = self.count
        return Bounded(low=low / whole, value=value / whole, high=min(high / whole, 1.0))
