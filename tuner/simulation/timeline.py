"""How a run went over time, in equal bins: load, progress and latencies, from its timings.

:class:`Timeline` is made from request timings alone, so it says the same of a live and a simulated
run; :class:`StepLine` from the steps of a simulated one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engine.spec.measurement import Measurement, RequestTiming
from engine.spec.modes import ENDS, Mode
from policies.attainment import judge
from policies.sla import Sla

if TYPE_CHECKING:
    from tuner.simulation.log import Segment

FloatArray = npt.NDArray[np.float64]

MAX_BINS = 120
# Widths that a reader of an axis expects, in seconds.
_STEPS = (1.0, 2.0, 5.0)


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Bins of ``bin_s`` seconds from the first arrival on; every list has one entry per bin.

    ``arrived`` and ``finished`` count requests. ``waiting`` is the mean number of requests
    without a first token yet (queued or in prefill), ``running`` of those between their first
    token and their last. Latencies belong to the bin of a request's arrival; None where none of
    them is known. ``output_tokens_per_s`` counts tokens where they came out.
    """

    bin_s: float
    arrived: tuple[int, ...]
    finished: tuple[int, ...]
    waiting: tuple[float, ...]
    running: tuple[float, ...]
    output_tokens_per_s: tuple[float, ...]
    ttft_p50_ms: tuple[float | None, ...]
    ttft_p95_ms: tuple[float | None, ...]
    tpot_p50_ms: tuple[float | None, ...]
    tpot_p95_ms: tuple[float | None, ...]

    @property
    def starts_s(self) -> tuple[float, ...]:
        """When each bin starts, seconds after the first arrival."""
        return tuple(self.bin_s * i for i in range(len(self.arrived)))

    def to_json(self) -> dict[str, Any]:
        return {
            "bin_s": self.bin_s,
            "arrived": list(self.arrived),
            "finished": list(self.finished),
            "waiting": list(self.waiting),
            "running": list(self.running),
            "output_tokens_per_s": list(self.output_tokens_per_s),
            "ttft_p50_ms": list(self.ttft_p50_ms),
            "ttft_p95_ms": list(self.ttft_p95_ms),
            "tpot_p50_ms": list(self.tpot_p50_ms),
            "tpot_p95_ms": list(self.tpot_p95_ms),
        }


def build_timeline(measurement: Measurement) -> Timeline:
    """The timeline of a run; requests that never got a token count as arrived only."""
    timings = measurement.timings
    start_s = min((t.scheduled_s for t in timings), default=0.0)
    done = [t for t in timings if t.token_s]
    ends = [t.token_s[-1] for t in done] or [t.scheduled_s for t in timings] or [start_s]
    bin_s = _bin_width(max(ends) - start_s)
    num_bins = int((max(ends) - start_s) / bin_s + 1e-9) + 1
    bins = _Bins(start_s=start_s, bin_s=bin_s, count=num_bins)
    first = [t.token_s[0] for t in done]
    last = [t.token_s[-1] for t in done]
    tokens = np.concatenate([np.asarray(t.token_s) for t in done]) if done else np.empty(0)
    return Timeline(
        bin_s=bin_s,
        arrived=bins.counts([t.scheduled_s for t in timings]),
        finished=bins.counts(last),
        waiting=bins.mean_active([t.scheduled_s for t in done], first),
        running=bins.mean_active(first, last),
        output_tokens_per_s=tuple(n / bin_s for n in bins.counts(tokens)),
        ttft_p50_ms=bins.percentiles(done, [t.ttft_ms for t in done], 50),
        ttft_p95_ms=bins.percentiles(done, [t.ttft_ms for t in done], 95),
        tpot_p50_ms=bins.percentiles(done, [t.tpot_ms for t in done], 50),
        tpot_p95_ms=bins.percentiles(done, [t.tpot_ms for t in done], 95),
    )


@dataclass(frozen=True, kw_only=True)
class StepLine:
    """What the steps of a run did in each bin of its :class:`Timeline`, all replicas together.

    ``busy_s`` are the ranks' seconds by mode, a stretch of equal steps spread evenly over its
    time; ``kv_usage`` the most (0..1) of any replica among stretches that start in the bin, None
    where none does.
    """

    busy_s: dict[Mode, tuple[float, ...]]
    kv_usage: tuple[float | None, ...]

    def share(self, mode: Mode) -> tuple[float | None, ...]:
        """Share of step time in ``mode``, per bin; None where no step ran."""
        totals = [sum(parts) for parts in zip(*self.busy_s.values(), strict=True)]
        own = zip(self.busy_s[mode], totals, strict=True)
        return tuple(busy / total if total > 0 else None for busy, total in own)

    def to_json(self) -> dict[str, Any]:
        return {
            "busy_s": {mode: list(values) for mode, values in self.busy_s.items()},
            "kv_usage": list(self.kv_usage),
        }


def build_step_line(segments: Sequence[Segment], timeline: Timeline, *, start_s: float) -> StepLine:
    """The steps of a run in the bins of ``timeline``, whose first starts at ``start_s``."""
    bins = _Bins(start_s=start_s, bin_s=timeline.bin_s, count=len(timeline.arrived))
    modes = dict.fromkeys([*ENDS, *(segment.shape.mode for segment in segments)])
    busy_s = {mode: bins.spread([s for s in segments if s.shape.mode == mode]) for mode in modes}
    usage: list[float | None] = [None] * bins.count
    starts = bins.index(np.array([s.start_s for s in segments], dtype=np.float64))
    for at, segment in zip(starts, segments, strict=True):
        usage[at] = max(usage[at] or 0.0, segment.kv_usage)
    return StepLine(busy_s=busy_s, kv_usage=tuple(usage))


def gap_percentiles(
    measurement: Measurement, timeline: Timeline, percent: float
) -> tuple[float | None, ...]:
    """A percentile of itl.v1 in ms per bin of ``timeline``: gaps by when they ended."""
    done = [t for t in measurement.timings if t.token_s]
    start_s = min((t.scheduled_s for t in measurement.timings), default=0.0)
    bins = _Bins(start_s=start_s, bin_s=timeline.bin_s, count=len(timeline.arrived))
    ends = [np.asarray(t.token_s[1:], dtype=np.float64) for t in done]
    gaps = [np.diff(np.asarray(t.token_s, dtype=np.float64)) for t in done]
    if not done:
        return (None,) * bins.count
    index, gaps_s = bins.index(np.concatenate(ends)), np.concatenate(gaps)
    order = np.argsort(index, kind="stable")
    parts = np.split(gaps_s[order], np.searchsorted(index[order], np.arange(1, bins.count)))
    return tuple(1e3 * float(np.percentile(part, percent)) if len(part) else None for part in parts)


def attainment_line(
    measurement: Measurement, timeline: Timeline, sla: Sla
) -> tuple[float | None, ...]:
    """attainment.v1 per bin of ``timeline``, of the requests that arrived in it; None: of none."""
    start_s = min((t.scheduled_s for t in measurement.timings), default=0.0)
    bins = _Bins(start_s=start_s, bin_s=timeline.bin_s, count=len(timeline.arrived))
    index = bins.index(np.array([t.scheduled_s for t in measurement.timings], dtype=np.float64))
    arrived: list[list[RequestTiming]] = [[] for _ in range(bins.count)]
    for at, timing in zip(index, measurement.timings, strict=True):
        arrived[at].append(timing)
    runs = [replace(measurement, timings=tuple(timings)) for timings in arrived]
    return tuple(judge(sla, run).attainment for run in runs)


def peak_active(measurement: Measurement) -> int:
    """The most requests that had arrived and not finished at any one time."""
    done = [t for t in measurement.timings if t.token_s]
    # At equal times an end comes first: the next request of a closed loop takes its place.
    events = sorted([(t.token_s[-1], -1) for t in done] + [(t.scheduled_s, 1) for t in done])
    return max(accumulate(change for _, change in events), default=0)


@dataclass(frozen=True, kw_only=True)
class _Bins:
    start_s: float
    bin_s: float
    count: int

    def counts(self, times_s: Sequence[float] | FloatArray) -> tuple[int, ...]:
        index = self.index(np.asarray(times_s, dtype=np.float64))
        return tuple(int(n) for n in np.bincount(index, minlength=self.count))

    def mean_active(self, from_s: Sequence[float], to_s: Sequence[float]) -> tuple[float, ...]:
        """Mean number of intervals that cover each bin: their covered seconds over its width."""
        edges: FloatArray = self.start_s + self.bin_s * np.arange(self.count + 1, dtype=np.float64)
        before = [_seconds_before(np.asarray(side), edges) for side in (from_s, to_s)]
        # Seconds since all starts less those since all ends: what intervals cover up to each edge.
        covered = np.diff(before[0] - before[1])
        return tuple(round(float(max(0.0, c)) / self.bin_s, 6) for c in covered)

    def spread(self, segments: Sequence[Segment]) -> tuple[float, ...]:
        """Busy seconds of each bin, a segment's spread evenly from its start to its end."""
        total = np.zeros(self.count)
        starts = self.index(np.array([s.start_s for s in segments], dtype=np.float64))
        ends = self.index(np.array([s.end_s[-1] for s in segments], dtype=np.float64))
        for first, last, segment in zip(starts, ends, segments, strict=True):
            if first == last:
                total[first] += segment.busy_s
                continue
            edges = self.start_s + self.bin_s * np.arange(first, last + 2, dtype=np.float64)
            inside = np.diff(np.clip(edges, segment.start_s, segment.end_s[-1]))
            total[first : last + 1] += segment.busy_s * inside / inside.sum()
        return tuple(round(float(busy_s), 9) for busy_s in total)

    def percentiles(
        self, timings: Sequence[RequestTiming], values: Sequence[float | None], percent: float
    ) -> tuple[float | None, ...]:
        index = self.index(np.array([t.scheduled_s for t in timings], dtype=np.float64))
        found: list[list[float]] = [[] for _ in range(self.count)]
        for at, value in zip(index, values, strict=True):
            if value is not None:
                found[at].append(value)
        return tuple(float(np.percentile(v, percent)) if v else None for v in found)

    def index(self, times_s: FloatArray) -> npt.NDArray[np.int64]:
        """The bin of each time."""
        # A time on an edge belongs to the bin that starts there, even if rounding put it just
        # below.
        index = np.floor((times_s - self.start_s) / self.bin_s + 1e-9).astype(np.int64)
        return np.clip(index, 0, self.count - 1)


def _seconds_before(times_s: FloatArray, edges: FloatArray) -> FloatArray:
    """For each edge, the seconds that have passed by it since each of ``times_s``, summed."""
    ordered = np.sort(times_s.astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    # The sum of edge - t over all t before an edge, without a loop over pairs.
    count = np.searchsorted(ordered, edges)
    return np.asarray(count * edges - sums[count], dtype=np.float64)


def _bin_width(span_s: float) -> float:
    """The smallest round width that needs at most ``MAX_BINS`` bins."""
    width = next(
        scale * step
        for scale in (10.0**power for power in range(-4, 9))
        for step in _STEPS
        if span_s / (scale * step) < MAX_BINS
    )
    return float(f"{width:g}")
