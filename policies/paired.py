"""Differences of runs that saw the same draws of the load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from policies.points import INTERVAL_LEVEL

# From a tenfold change on, tenths of a percent say nothing.
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


def _percent(share: float) -> str:
    """In percent; what rounds to nothing has no minus."""
    digits = 0 if abs(share) >= MUCH else 1
    return f"{round(100 * share, digits) + 0.0:+.{digits}f}"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A mean difference over draws and its 90 % interval."""

    mean: float
    low: float
    high: float


def paired_difference(after: Sequence[float], before: Sequence[float]) -> Difference | None:
    """The mean of ``after - before`` over draws, by the paired t interval: few draws do not carry a
    bootstrap. None with fewer than two draws, or where a number is not finite.
    """
    if len(after) < 2 or not all(math.isfinite(v) for v in (*after, *before)):
        return None
    differences = [a - b for a, b in zip(after, before, strict=True)]
    mean = fmean(differences)
    half = _quantile(len(differences) - 1) * stdev(differences) / math.sqrt(len(differences))
    return Difference(mean=mean, low=mean - half, high=mean + half)


def paired_change(after: Sequence[float], before: Sequence[float]) -> Change | None:
    """The mean log ratio over draws as a share, by :func:`paired_difference`. None with fewer than
    two draws, or where a number is infinite or not above 0.
    """
    if not all(0 < v < math.inf for v in (*after, *before)):
        return None
    found = paired_difference([math.log(v) for v in after], [math.log(v) for v in before])
    if found is None:
        return None
    return Change(
        share=math.expm1(found.mean), low=math.expm1(found.low), high=math.expm1(found.high)
    )


def _quantile(degrees_of_freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, 0.5 + INTERVAL_LEVEL / 2))
