"""Differences of runs that saw the same draws of the load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from policies.points import INTERVAL_LEVEL

# From ten times as much on, tenths of a percent say nothing.
MUCH = 10.0


@dataclass(frozen=True, kw_only=True)
class Change:
    """How much more one has than the other, as a share of the other, and its 90 % interval.

    ``is_beyond_noise``: the interval does not hold 0.
    """

    share: float
    low: float
    high: float

    @property
    def is_beyond_noise(self) -> bool:
        return self.low > 0 or self.high < 0

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "is_beyond_noise": self.is_beyond_noise}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Change:
        return cls(share=raw["share"], low=raw["low"], high=raw["high"])

    def __str__(self) -> str:
        noise = "" if self.is_beyond_noise else ", within noise"
        low, high = _percent(self.low), _percent(self.high)
        return f"{_percent(self.share)} % ({low} .. {high}{noise})"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Means over draws, and by how much the one lies above the other, with its 90 % interval.

    With one draw nothing is known of the interval: it is all that a share can change by.
    """

    before: float
    after: float
    change: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def _percent(share: float) -> str:
    return f"{100 * share:+.0f}" if abs(share) >= MUCH else f"{100 * share:+.1f}"


def paired_change(after: Sequence[float], before: Sequence[float]) -> Change | None:
    """The mean log ratio over draws as a share, by the paired t interval: few draws do not carry a
    bootstrap. None with fewer than two draws, or where a number is infinite or not above 0.
    """
    if len(after) < 2 or not all(0 < v < math.inf for v in (*after, *before)):
        return None
    ratios = [math.log(a / b) for a, b in zip(after, before, strict=True)]
    mean, half = fmean(ratios), _half_width(ratios)
    return Change(share=math.expm1(mean), low=math.expm1(mean - half), high=math.expm1(mean + half))


def paired_difference(after: Sequence[float], before: Sequence[float]) -> Difference:
    """The mean difference of shares (0 to 1) over draws, by the paired t interval."""
    changes = [a - b for a, b in zip(after, before, strict=True)]
    mean, half = fmean(changes), _half_width(changes) if len(changes) > 1 else 1.0
    return Difference(
        before=fmean(before),
        after=fmean(after),
        change=mean,
        low=max(mean - half, -1.0),
        high=min(mean + half, 1.0),
    )


def _half_width(values: Sequence[float]) -> float:
    return _quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def _quantile(degrees_of_freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, 0.5 + INTERVAL_LEVEL / 2))
