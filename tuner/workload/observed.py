"""The load that a served engine had, as a workload to simulate: minutes become requests again.

What is kept of an engine's hours is how many requests came in each minute, and their tokens. When
in its minute a request came and how long it was is drawn; the number in each minute is not. Bursts
of seconds and shared beginnings are not kept, so they are not in the draws either.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from policies.load_history import SLOT_S, LoadSlot
from tuner.spec.errors import WorkloadError
from tuner.workload import synthetic
from tuner.workload.workload import (
    Arrival,
    FloatArray,
    IntArray,
    Workload,
    WorkloadSource,
    rows_sha256,
)

# Spread of lengths inside a minute where no request of it is known: as wide as an exponential.
UNKNOWN_CV = 1.0
# Newer minutes say more; older ones are left out where there would be more requests than these.
MOST_REQUESTS = 5000

Lengths = Sequence[tuple[int, int]]


def newest(slots: Sequence[LoadSlot], most_requests: int = MOST_REQUESTS) -> list[LoadSlot]:
    """The last minutes that bring at most so many requests together, oldest first."""
    kept: list[LoadSlot] = []
    count = 0.0
    for slot in sorted(slots, key=lambda s: s.start_s, reverse=True):
        count += _requests(slot)
        if kept and count > most_requests:
            break
        kept.append(slot)
    return kept[::-1]


def draw_minutes(slots: Sequence[LoadSlot], seed: int, *, lengths: Lengths = ()) -> Workload:
    """One draw of what came in ``slots``; equal seeds give equal draws.

    ``lengths``: input and output tokens of requests that the engine served. A request has those of
    one of them (both of the same one: long prompts may have short answers), stretched to the mean
    of its minute. Without them both are log-normal around that mean. A minute that was seen in part
    counts as if the rest had been like it; one that nobody saw is left out.

    Raises:
        WorkloadError: nothing came in any of the minutes.
    """
    rng = np.random.default_rng([seed, 0x0B5E])
    sample = np.array(lengths, dtype=np.float64).reshape(-1, 2)
    seen = sorted((s for s in slots if s.seen_s > 0), key=lambda s: s.start_s)
    first_s = seen[0].start_s if seen else 0.0
    arrivals = [
        arrival
        for slot in seen
        for arrival in draw_minute(slot, slot.start_s - first_s, sample, rng)
    ]
    if not arrivals:
        raise WorkloadError(f"load of {len(slots)} minutes: no request came in any of them")
    span_s = seen[-1].start_s + SLOT_S - seen[0].start_s
    source = WorkloadSource(
        spec=f"the load of {len(seen)} minutes",
        seed=seed,
        sha256=rows_sha256(arrivals),
        rows=len(arrivals),
        span_s=span_s,
    )
    return Workload(arrivals=tuple(arrivals), source=source)


def draw_minute(
    slot: LoadSlot, begin_s: float, sample: FloatArray, rng: np.random.Generator
) -> list[Arrival]:
    """What came in ``slot``, from ``begin_s`` on; ``sample``: input and output tokens f8[n, 2] of
    requests that the engine served, as in :func:`draw_minutes`."""
    count = int(_requests(slot) + rng.random())
    if not count or not slot.requests:
        return []
    times = begin_s + np.sort(rng.random(count)) * SLOT_S
    means = (slot.input_tokens / slot.requests, slot.output_tokens / slot.requests)
    inputs, outputs = _lengths(means, sample, count, rng)
    return [
        Arrival(arrival_s=float(at_s), input_tokens=int(i), output_tokens=int(o))
        for at_s, i, o in zip(times, inputs, outputs, strict=True)
    ]


def _lengths(
    means: tuple[float, float],
    sample: FloatArray,
    count: int,
    rng: np.random.Generator,
) -> tuple[IntArray, IntArray]:
    means = (max(means[0], 1.0), max(means[1], 1.0))
    if not len(sample):
        return (
            synthetic.lengths(rng, mean=means[0], cv=UNKNOWN_CV, count=count),
            synthetic.lengths(rng, mean=means[1], cv=UNKNOWN_CV, count=count),
        )
    picked = sample[rng.integers(len(sample), size=count)] * means / sample.mean(axis=0)
    whole = np.maximum(1, np.rint(picked)).astype(np.int64)
    return whole[:, 0], whole[:, 1]


def _requests(slot: LoadSlot) -> float:
    """Requests that would have come in the whole minute."""
    return slot.requests * SLOT_S / slot.seen_s if slot.seen_s > 0 else 0.0
