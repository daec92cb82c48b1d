"""The same traffic at another rate: arrivals thinned or repeated so that its burstiness is kept.

Arrivals are cut into stretches of about ``BLOCK`` in a row. Each stretch keeps its place and its
length in time. Inside it the gaps are divided by ``factor``, and the requests, which then take
``1 / factor`` of the time, go round and round until the time is full: more than once for a higher
rate (repeated), not once for a lower one (thinned). So, beside their mean, the gaps keep their
distribution (CV of gaps), and the rate keeps its course over everything longer than a stretch:
minutes, bursts, ramps. Gaps so rare that a thinned stretch may miss them (silences between bursts
of hundreds of requests) come out shorter: there the CV falls, the course of the rate stays. Every
request is one of the workload, with its lengths.

What comes a second time comes from others: the beginnings that requests share are shared among
those that come the first time, among those that come the second time, and so on. Else each
repeated prompt would find itself in the prefix cache, and a higher rate would look cheap.

Where in its requests a stretch begins is drawn. ``seed`` 0 begins at the first one, so factor 1
gives the workload itself. The other seeds give other draws of the same traffic, the same for all
factors: differences between factors are then not those of luck.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
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
    others = _Others.of(workload)
    for number in range(rounds):
        is_first = seed == 0 and number == 0
        rng = None if is_first else np.random.default_rng([seed, number, 0x57E7])
        before = number * math.ceil(factor + 1)  # no stretch is repeated more often in a round
        shift_s = number * period_s
        found += _one_round(workload, factor, rng, others, shift_s=shift_s, before=before)
    return replace(workload, arrivals=tuple(found) or workload.arrivals[:1])


def _more_clients(workload: Workload, factor: float, seed: int) -> Workload:
    assert workload.closed is not None, "only a closed loop has clients"
    clients = max(1, round(workload.closed.concurrency * factor))
    count = max(1, round(len(workload) * clients / workload.closed.concurrency))
    first = _draw_start(seed, len(workload))
    others = _Others.of(workload)
    arrivals = tuple(
        others.send(workload.arrivals[(first + i) % len(workload)], i // len(workload))
        for i in range(count)
    )
    closed = replace(workload.closed, concurrency=clients)
    return replace(workload, arrivals=arrivals, closed=closed)


def _draw_start(seed: int, count: int) -> int:
    return 0 if seed == 0 else int(np.random.default_rng([seed, 0xC105]).integers(count))


@dataclass(frozen=True, kw_only=True)
class _Others:
    """Sends a request again, as others would: what it shares, it shares with theirs. ``num_ids`` is
    above every hash id."""

    num_ids: int

    @classmethod
    def of(cls, workload: Workload) -> _Others:
        return cls(num_ids=1 + max(max(a.hash_ids, default=0) for a in workload.arrivals))

    def send(self, arrival: Arrival, time: int) -> Arrival:
        """``time``: how often it came before."""
        if time == 0 or (arrival.prefix_id is None and not arrival.hash_ids):
            return arrival
        prefix_id = None if arrival.prefix_id is None else f"{arrival.prefix_id} x{time}"
        hash_ids = tuple(each + time * self.num_ids for each in arrival.hash_ids)
        return replace(arrival, prefix_id=prefix_id, hash_ids=hash_ids)


def _one_round(
    workload: Workload,
    factor: float,
    rng: np.random.Generator | None,
    others: _Others,
    *,
    shift_s: float,
    before: int,
) -> list[Arrival]:
    """All stretches once. Requests are counted over the whole round, so that rounding of one
    stretch is made good in the next. ``before``: how often each came in earlier rounds, at most."""
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
        repeats, order = np.divmod(np.arange(wanted), high - low)
        order = (first + order) % (high - low)
        starts = np.concatenate(([0.0], np.cumsum(gaps[order])))
        # The last gap reaches the next stretch, so the stretch is filled exactly.
        scale = (end_s - begin_s) / starts[-1] if wanted and starts[-1] > 0 else 0.0
        found += [
            replace(
                others.send(arrivals[low + i], before + int(again)),
                arrival_s=shift_s + begin_s + float(start) * scale,
            )
            for i, again, start in zip(order, repeats, starts[:-1], strict=True)
        ]
    return found
