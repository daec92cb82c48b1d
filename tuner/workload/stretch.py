"""The same traffic at another rate: arrivals thinned or repeated so that its burstiness is kept.

Arrivals are cut into stretches of about ``BLOCK`` in a row. Each stretch keeps its place and its
length in time. Inside it the gaps are divided by ``factor``, and the requests, which then take
``1 / factor`` of the time, go round and round until the time is full: more than once for a higher
rate (repeated), not once for a lower one (thinned). So, beside their mean, the gaps keep their
distribution (CV of gaps), and the rate keeps its course over everything longer than a stretch:
minutes, bursts, ramps. Gaps so rare that a thinned stretch may miss them (silences between bursts
of hundreds of requests) come out shorter: there the CV falls, the course of the rate stays. Every
request is one of the workload, with its lengths and its prefix.

Where in its requests a stretch begins is drawn. ``seed`` 0 begins at the first one, so factor 1
gives the workload itself. The other seeds give other draws of the same traffic, the same for all
factors: differences between factors are then not those of luck.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np

from tuner.workload.workload import Arrival, Workload

BLOCK = 64


def stretch(workload: Workload, factor: float, *, seed: int = 0, least: int = 1) -> Workload:
    """``workload`` at ``factor`` (above 0) times its rate, over the same time.

    A closed loop gets ``factor`` times as many clients, and each sends as many requests as before.
    ``least``: if fewer requests than this would be left, the traffic goes on, draw after draw,
    until there are enough.
    """
    if factor == 1 and seed == 0 and least <= len(workload):
        return workload
    if workload.closed is not None:
        return _more_clients(workload, factor, seed)
    if len(workload) == 1 or workload.span_s == 0:
        return workload
    rounds = max(1, math.ceil(least / (factor * len(workload))))
    period_s = workload.span_s * len(workload) / (len(workload) - 1)
    found: list[Arrival] = []
    for number in range(rounds):
        is_first = seed == 0 and number == 0
        rng = None if is_first else np.random.default_rng([seed, number, 0x57E7])
        found += _one_round(workload, factor, rng, shift_s=number * period_s)
    return replace(workload, arrivals=tuple(found) or workload.arrivals[:1])


def _more_clients(workload: Workload, factor: float, seed: int) -> Workload:
    assert workload.closed is not None, "only a closed loop has clients"
    clients = max(1, round(workload.closed.concurrency * factor))
    count = max(1, round(len(workload) * clients / workload.closed.concurrency))
    first = _draw_start(seed, len(workload))
    arrivals = tuple(workload.arrivals[(first + i) % len(workload)] for i in range(count))
    closed = replace(workload.closed, concurrency=clients)
    return replace(workload, arrivals=arrivals, closed=closed)


def _draw_start(seed: int, count: int) -> int:
    return 0 if seed == 0 else int(np.random.default_rng([seed, 0xC105]).integers(count))


def _one_round(
    workload: Workload, factor: float, rng: np.random.Generator | None, *, shift_s: float
) -> list[Arrival]:
    """All stretches once. Requests are counted over the whole round, so that rounding of one
    stretch is made good in the next."""
    arrivals, times = workload.arrivals, workload.arrival_s
    count = len(arrivals)
    # Thinned, a stretch still has about BLOCK gaps: short and long ones in their shares.
    num_blocks = max(1, round(min(1.0, factor) * count / BLOCK))
    edges = np.linspace(0, count, num_blocks + 1).round().astype(int)
    mean_gap_s = workload.span_s / (count - 1)
    found: list[Arrival] = []
    for low, high in pairwise(edges):
        begin_s = float(times[low])
        end_s = float(times[high]) if high < count else float(times[-1]) + mean_gap_s
        wanted = round(factor * float(high)) - round(factor * float(low))
        offsets = np.append(times[low:high], end_s) - begin_s
        gaps = np.diff(offsets)
        first = 0 if rng is None else int(rng.integers(high - low))
        order = (first + np.arange(wanted)) % (high - low)
        starts = np.concatenate(([0.0], np.cumsum(gaps[order])))
        # The last gap reaches the next stretch, so the stretch is filled exactly.
        scale = (end_s - begin_s) / starts[-1] if wanted and starts[-1] > 0 else 0.0
        found += [
            replace(arrivals[low + i], arrival_s=shift_s + begin_s + float(start) * scale)
            for i, start in zip(order, starts[:-1], strict=True)
        ]
    return found
