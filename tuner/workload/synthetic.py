"""Synthetic arrival processes and length laws; every draw comes from the generator given.

Arrival times are seconds from 0, f8[requests], rising. Rates are requests per second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tuner.workload.workload import FloatArray, IntArray

# Drawn lengths are cut here; a workload that still holds one this long is refused for its size.
MAX_DRAWN_TOKENS = 1e12


@dataclass(frozen=True, kw_only=True)
class RateSegment:
    """A stretch of time with a rate that moves linearly from ``from_rps`` to ``to_rps``."""

    seconds: float
    from_rps: float
    to_rps: float


def gamma_times(
    rng: np.random.Generator,
    *,
    rate_rps: float,
    cv: float,
    seconds: float,
    is_under_way: bool = True,
) -> FloatArray:
    """A renewal process with gamma gaps; cv = 1 is the Poisson process.

    ``is_under_way``: it has long begun, so what is left of a gap comes first. After a whole gap a
    window would hold (cv^2 - 1) / 2 arrivals more than its rate says (Smith, 1954).
    """
    shape = 1 / cv**2
    block = max(64, int(rate_rps * seconds * 1.2))
    times = np.empty(0)
    while not times.size or times[-1] < seconds:
        gaps = rng.gamma(shape, cv**2 / rate_rps, size=block)
        if is_under_way and cv != 1 and not times.size:
            # Time falls into long gaps more often, and anywhere in them.
            gaps[0] = rng.random() * rng.gamma(shape + 1, cv**2 / rate_rps)
        start = times[-1] if times.size else 0.0
        times = np.concatenate([times, start + np.cumsum(gaps)])
    return times[times < seconds]


def varying_times(rng: np.random.Generator, segments: Sequence[RateSegment]) -> FloatArray:
    """A Poisson process whose rate follows ``segments``, drawn by thinning its peak rate."""
    total = sum(s.seconds for s in segments)
    peak = max(max(s.from_rps, s.to_rps) for s in segments)
    candidates = gamma_times(rng, rate_rps=peak, cv=1.0, seconds=total)
    rates = _rate_at(candidates, segments)
    return candidates[rng.random(candidates.size) * peak < rates]


def burst_segments(
    rng: np.random.Generator,
    *,
    rate_rps: float,
    peak_rps: float,
    on_s: float,
    off_s: float,
    seconds: float,
) -> list[RateSegment]:
    """A two-state Markov-modulated rate: ``rate_rps`` between bursts, ``peak_rps`` inside them.

    Dwell times are exponential with means ``off_s`` and ``on_s``; it starts between bursts.
    """
    segments, now, is_on = [], 0.0, False
    while now < seconds:
        dwell = min(float(rng.exponential(on_s if is_on else off_s)), seconds - now)
        rate = peak_rps if is_on else rate_rps
        segments.append(RateSegment(seconds=dwell, from_rps=rate, to_rps=rate))
        now += dwell
        is_on = not is_on
    return segments


def lengths(rng: np.random.Generator, *, mean: float, cv: float, count: int) -> IntArray:
    """Token counts of at least 1: all equal to ``mean`` for cv 0, else log-normal."""
    if cv == 0:
        return np.full(count, max(1, round(mean)), dtype=np.int64)
    sigma = math.sqrt(math.log1p(cv**2))
    drawn = rng.lognormal(math.log(mean) - sigma**2 / 2, sigma, size=count)
    return np.clip(np.rint(drawn), 1, MAX_DRAWN_TOKENS).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class AzureLikeShape:
    """Statistics of the Azure LLM 2023 code trace (CC-BY-4.0) that ``azure-like:`` draws from.

    Bursts of requests with gaps of mean ``near_gap_s`` (log-normal from burst to burst, sigma
    ``near_gap_spread``) are parted by silences of mean ``silence_s``; each request starts one with
    ``silence_chance``. This gives 2.57 requests/s with a CV of gaps near 13 and a minute peak/mean
    near 4.2. Lengths follow quantiles of the trace, interpolated in the logarithm; input and output
    are uncorrelated in it (r = -0.005).
    """

    near_gap_s: float = 0.099
    near_gap_spread: float = 0.6
    silence_s: float = 44.7
    silence_chance: float = 0.0065
    span_s: float = 3436.0
    mean_rps: float = 2.57
    levels: tuple[float, ...] = (0, 0.05, 0.1, 0.3, 0.5, 0.7, 0.85, 0.95, 0.975, 0.99, 0.999, 1)
    inputs: tuple[int, ...] = (3, 75, 147, 770, 1469, 2433, 3920, 7303, 7435, 7436, 7437, 7437)
    outputs: tuple[int, ...] = (6, 6, 7, 9, 13, 20, 39, 90, 145, 251, 825, 1899)


def azure_like_times(
    rng: np.random.Generator, shape: AzureLikeShape, *, seconds: float
) -> FloatArray:
    """Bursts and silences; it starts with a burst, as the trace does."""
    times: list[FloatArray] = []
    now = 0.0
    while now < seconds:
        count = int(rng.geometric(shape.silence_chance))
        sigma = shape.near_gap_spread
        gap_s = shape.near_gap_s * float(rng.lognormal(-(sigma**2) / 2, sigma))
        burst = now + np.cumsum(rng.exponential(gap_s, size=count))
        times.append(burst)
        now = float(burst[-1] + rng.exponential(shape.silence_s))
    joined = np.concatenate(times)
    return joined[joined < seconds]


def quantile_lengths(
    rng: np.random.Generator, levels: Sequence[float], values: Sequence[int], count: int
) -> IntArray:
    """Token counts drawn from a quantile table, interpolated in the logarithm."""
    drawn = np.exp(np.interp(rng.random(count), levels, np.log(values)))
    return np.maximum(1, np.rint(drawn)).astype(np.int64)


def _rate_at(times: FloatArray, segments: Sequence[RateSegment]) -> FloatArray:
    ends = np.cumsum([s.seconds for s in segments])
    index = np.minimum(np.searchsorted(ends, times, side="right"), len(segments) - 1)
    spans = np.array([s.seconds for s in segments])
    low = np.array([s.from_rps for s in segments])
    high = np.array([s.to_rps for s in segments])
    share = (times - (ends - spans)[index]) / np.maximum(spans[index], 1e-12)
    return np.asarray(low[index] + (high - low)[index] * share, dtype=np.float64)
