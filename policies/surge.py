"""Whether more comes than is carried: told by arrivals, as soon as they surely say so.

A bank of one-sided CUSUMs of the log likelihood ratio (Page 1954; for counts: Lucas 1985), each for
a load that is so many times what is carried, against one that is just carried. The bank is quick
for large and for small rises alike, without knowing beforehand how far a load rises (Han and Tsung
2006). Under a load that is carried each sum reaches ``h`` within n readings with a chance of at
most ``n * exp(-h)``, since the ratio is a martingale at most (Lorden 1971): so a rate of false
alarms is asked for, and ``h`` follows from it.

Arrivals that come in gusts are counted as gusts: sums are divided by the engine's own dispersion
(quasi-likelihood: McCullagh and Nelder 1989), told from successive differences, which a trend or a
step hardly moves (von Neumann 1941). Pure; the caller keeps the memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from policies.errors import PolicyInputError

# The rises that are watched for, as factors of what is carried.
RISES = (1.25, 1.5, 2.0, 4.0)
# Until something is known of an engine's arrivals they count as gusts of two requests, as in
# `load_history.luck_of`; that assumption weighs as much as this many readings.
FIRST_DISPERSION = 2.0
FIRST_READINGS = 12
# About how many of the latest readings the dispersion is estimated from.
MOST_READINGS = 60
# A stretch with fewer requests than this is shorter than gusts are and says little about them, so
# readings are joined until they have as many, or last MOST_STRETCH_S.
LEAST_STRETCH = 20.0
MOST_STRETCH_S = 60.0
# A squared difference is capped at three standard deviations: a step of the load is no gust.
MOST_SQUARES = 9.0
HOUR_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class SurgeLimits:
    """``false_alarms_per_h``: at most as many, on average, while just what is carried comes, with a
    reading every ``every_s``; while less comes, fewer.

    Each may keep a device for some minutes: one in two hours is less than a hundredth of the
    device time of eight.

    Raises:
        PolicyInputError: a limit that is not above 0.
    """

    false_alarms_per_h: float = 0.5
    every_s: float = 5.0

    def __post_init__(self) -> None:
        for name in ("false_alarms_per_h", "every_s"):
            if not getattr(self, name) > 0:
                raise PolicyInputError(f"surge limits: {name}={getattr(self, name)}: not above 0")

    @property
    def threshold(self) -> float:
        """What a sum has to reach."""
        readings_per_h = HOUR_S / self.every_s
        return math.log(max(len(RISES) * readings_per_h / self.false_alarms_per_h, math.e))


@dataclass(frozen=True, kw_only=True)
class SurgeSum:
    """The CUSUM of one rise: its ``sum``, and what came since it last was 0."""

    sum: float = 0.0
    requests: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SurgeMemory:
    """What one reading hands to the next.

    ``read_s``: when it was. ``joined_requests`` of the ``joined_seconds`` of readings that are no
    stretch yet (``LEAST_STRETCH``); ``rate_rps`` and ``seconds`` of the last stretch, ``readings``
    how many dispersion was told from, ``mean_rps`` and ``square_rps`` their mean rate and the
    variance of the count in a second. ``sums``: one for each of ``RISES``. ``alarmed_s``: since
    when the alarm stands. ``waiting``: requests that waited then.
    """

    read_s: float | None = None
    joined_requests: float = 0.0
    joined_seconds: float = 0.0
    rate_rps: float | None = None
    seconds: float = 0.0
    readings: int = 0
    mean_rps: float = 0.0
    square_rps: float = 0.0
    sums: tuple[SurgeSum, ...] = field(default=(SurgeSum(),) * len(RISES))
    alarmed_s: float | None = None
    waiting: float = 0.0

    @property
    def dispersion(self) -> float:
        """Variance of the count of arrivals over its mean: 1 of a Poisson process, more of one that
        comes in gusts."""
        if not self.mean_rps:
            return FIRST_DISPERSION
        return max(1.0, self.square_rps / self.mean_rps)

    @property
    def surging_rps(self) -> float | None:
        """Requests a second since the rise that is most likely; None without an alarm."""
        rise = self._likeliest
        return rise.requests / rise.seconds if rise.seconds else None

    @property
    def surging_requests(self) -> float:
        """How many came since that rise; 0 without an alarm."""
        return self._likeliest.requests

    @property
    def _likeliest(self) -> SurgeSum:
        return SurgeSum() if self.alarmed_s is None else max(self.sums, key=lambda s: s.sum)

    def to_json(self) -> dict[str, Any]:
        sums = [[s.sum, s.requests, s.seconds] for s in self.sums]
        return {**vars(self), "sums": sums}

    @classmethod
    def from_json(cls, document: Mapping[str, Any] | None) -> SurgeMemory:
        """Read what :meth:`to_json` wrote; nothing kept, or of another bank, is an empty memory."""
        if not document or len(document["sums"]) != len(RISES):
            return cls()
        sums = tuple(SurgeSum(sum=s, requests=n, seconds=t) for s, n, t in document["sums"])
        return cls(**{**document, "sums": sums})


def watch_arrivals(
    memory: SurgeMemory,
    *,
    requests: float,
    seconds: float,
    carried_rps: float,
    now_s: float,
    waiting: float = 0.0,
    limits: SurgeLimits,
) -> SurgeMemory:
    """Take in what came in ``seconds`` up to now, where ``carried_rps`` requests as long as these
    are carried.

    The alarm rises when a sum reaches the threshold, and falls when all are back at 0. Sums stop at
    twice the threshold, so that a rise of hours is over as soon as one of minutes.

    Raises:
        PolicyInputError: no time, nothing carried, or fewer requests than none.
    """
    if not (seconds > 0 and carried_rps > 0 and requests >= 0):
        raise PolicyInputError(
            f"arrivals: {requests} requests in {seconds} s, {carried_rps}/s carried"
        )
    before = memory
    memory = _with_reading(memory, requests, seconds)
    # What is known of gusts before this reading: a step is none.
    dispersion = max(before.dispersion, 1.0)
    sums = tuple(
        _added(known, rise, requests, seconds, carried_rps, dispersion, 2 * limits.threshold)
        for known, rise in zip(memory.sums, RISES, strict=True)
    )
    alarmed_s = memory.alarmed_s
    if max(s.sum for s in sums) >= limits.threshold:
        alarmed_s = now_s if alarmed_s is None else alarmed_s
    elif not any(s.sum for s in sums):
        alarmed_s = None
    return replace(memory, read_s=now_s, sums=sums, alarmed_s=alarmed_s, waiting=waiting)


def forget_surge(memory: SurgeMemory) -> SurgeMemory:
    """After a change of what is carried sums begin anew; how gusty arrivals are is still known."""
    return replace(memory, sums=SurgeMemory().sums, alarmed_s=None)


def _added(
    known: SurgeSum,
    rise: float,
    requests: float,
    seconds: float,
    carried_rps: float,
    dispersion: float,
    most: float,
) -> SurgeSum:
    ratio = requests * math.log(rise) - carried_rps * seconds * (rise - 1)
    total = known.sum + ratio / dispersion
    if total <= 0:
        return SurgeSum()
    return SurgeSum(
        sum=min(total, most),
        requests=known.requests + requests,
        seconds=known.seconds + seconds,
    )


def _with_reading(memory: SurgeMemory, requests: float, seconds: float) -> SurgeMemory:
    """Join readings until gusts of about ``LEAST_STRETCH`` requests are seen whole; the dispersion
    of what is shorter than they are is too small (as the index of dispersion of counts has it:
    Cox and Lewis 1966)."""
    requests, seconds = memory.joined_requests + requests, memory.joined_seconds + seconds
    is_whole = memory.mean_rps * seconds >= LEAST_STRETCH or seconds >= MOST_STRETCH_S
    if memory.rate_rps is not None and not is_whole:
        return replace(memory, joined_requests=requests, joined_seconds=seconds)
    memory = replace(memory, joined_requests=0.0, joined_seconds=0.0)
    return _with_dispersion(memory, requests / seconds, seconds)


def _with_dispersion(memory: SurgeMemory, rate_rps: float, seconds: float) -> SurgeMemory:
    """A difference of two rates has the variance of one second's count over each length."""
    if memory.rate_rps is None:
        return replace(
            memory,
            rate_rps=rate_rps,
            seconds=seconds,
            mean_rps=rate_rps,
            square_rps=rate_rps * FIRST_DISPERSION,
        )
    square = (rate_rps - memory.rate_rps) ** 2 / (1 / seconds + 1 / memory.seconds)
    mean_rps = max(memory.mean_rps, rate_rps)
    square = min(square, MOST_SQUARES * max(memory.square_rps, mean_rps))
    share = 1 / min(FIRST_READINGS + memory.readings, MOST_READINGS)
    return replace(
        memory,
        rate_rps=rate_rps,
        seconds=seconds,
        readings=min(memory.readings + 1, MOST_READINGS),
        mean_rps=memory.mean_rps + share * (rate_rps - memory.mean_rps),
        square_rps=memory.square_rps + share * (square - memory.square_rps),
    )
