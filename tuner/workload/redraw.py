"""Other draws of the same traffic: what another hour of it might have brought.

A process is drawn again with another seed. Of a trace, or of anything that was cut or scaled since
it was drawn, each stretch of about ``BLOCK`` arrivals keeps its place in time; its gaps and its
requests are drawn with replacement, so that counts, bursts and lengths vary as they do within it.
Requests that share beginnings are only rearranged (:func:`tuner.workload.stretch.stretch`): one
drawn twice would find itself in the prefix cache.

``seed`` 0 is the workload itself. With equal seeds, all candidates get the same draw, so that luck
does not tell them apart.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from tuner.spec.errors import WorkloadError
from tuner.workload.parse import parse_workload
from tuner.workload.slices import at_rate
from tuner.workload.spec import WorkloadSpec
from tuner.workload.stretch import BLOCK, stretch
from tuner.workload.workload import Arrival, Workload

SEED_STEP = 104_729


def redraw(workload: Workload, seed: int, *, load: float = 1.0) -> Workload:
    """Draw number ``seed`` of the traffic; an open loop comes ``load`` times as fast."""
    found = workload if seed == 0 else _another(workload, seed)
    return found if load == 1 or found.closed is not None else at_rate(found, load)


def _another(workload: Workload, seed: int) -> Workload:
    drawn = _from_process(workload, seed)
    if drawn is not None:
        return drawn
    if workload.shares_beginnings:
        return stretch(workload, 1.0, seed=seed)
    return _resampled(workload, np.random.default_rng([seed, 0xD2A7]))


def _from_process(workload: Workload, seed: int) -> Workload | None:
    """None for a trace, or if the workload is no longer what its SPEC and seed say."""
    source = workload.source
    try:
        if WorkloadSpec.parse(source.spec).is_trace:
            return None
        if parse_workload(source.spec, seed=source.seed).arrivals != workload.arrivals:
            return None
        drawn = parse_workload(source.spec, seed=source.seed + seed * SEED_STEP)
    except WorkloadError:  # that draw has no request in the window
        return None
    return replace(drawn, closed=workload.closed)


def _resampled(workload: Workload, rng: np.random.Generator) -> Workload:
    arrivals, times = workload.arrivals, workload.arrival_s
    count = len(arrivals)
    edges = np.linspace(0, count, max(1, round(count / BLOCK)) + 1).round().astype(int)
    found: list[Arrival] = []
    for low, high in pairwise(edges):
        begin_s = float(times[low])
        end_s = float(times[high]) if high < count else float(times[-1])
        starts = _starts(np.diff(times[low : high + 1]), end_s - begin_s, int(high - low), rng)
        picked = rng.integers(low, high, len(starts))
        found += [
            replace(arrivals[i], arrival_s=begin_s + start)
            for i, start in zip(picked, starts, strict=True)
        ]
    return replace(workload, arrivals=tuple(found))


def _starts(
    gaps: np.ndarray[tuple[int], np.dtype[np.float64]],
    span_s: float,
    count: int,
    rng: np.random.Generator,
) -> list[float]:
    """Times within ``span_s`` of about ``count`` arrivals: their number is Poisson, their gaps are
    drawn with replacement and scaled to fill the span. Unscaled, gaps of a heavy tail would bring
    more arrivals than came, by (cv^2 - 1) / 2 on average (Smith, renewal theory, 1954).
    """
    if span_s <= 0 or len(gaps) == 0:
        return [0.0] * count
    drawn = rng.choice(gaps, max(1, int(rng.poisson(count))))
    ends_s = np.cumsum(drawn)
    if ends_s[-1] <= 0:
        return [0.0] * len(drawn)
    return [0.0, *(ends_s[:-1] * span_s / ends_s[-1]).tolist()]
