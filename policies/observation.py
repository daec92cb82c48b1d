"""What the controller sees of an engine's traffic: windows of exact timings, joined and judged.

The live loop builds the windows from heartbeats, a simulated run from its own timings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from engine.spec.measurement import Distribution, Fidelity, Measurement, Outcome, RequestTiming
from policies.attainment import SlaReport, judge
from policies.decision import LoadWindow
from policies.report import flat_metrics
from policies.sla import Sla

MIN_WINDOW_S = 1e-6
MAX_WINDOW_S = 1e8
MAX_COUNT = 10_000_000
# Later than any clock here; NaN and infinity are beyond it, too.
MAX_TIME_S = 1e11
# Times since an epoch, as floats, are no finer than this.
CLOCK_S = 1e-6


@dataclass(frozen=True, kw_only=True)
class TrafficWindow:
    """``window_s`` seconds of one engine: requests that came (those that were turned away for want
    of room, too), timings of those that ended."""

    window_s: float
    num_arrived: int
    timings: tuple[RequestTiming, ...]

    @property
    def is_sound(self) -> bool:
        """Whether it can have happened: a length of time, counts, and times that do not fall."""
        return (
            MIN_WINDOW_S <= self.window_s <= MAX_WINDOW_S
            and 0 <= self.num_arrived <= MAX_COUNT
            and all(_is_sound(timing) for timing in self.timings)
        )


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One stretch of an engine's traffic, judged by its SLA.

    ``metrics`` are finite: a percentile that falls among failed requests, which is infinite to an
    SLA, is left out. JSON has no number for it, and PostgreSQL refuses documents with one.
    """

    load: LoadWindow
    measurement: Measurement
    report: SlaReport | None
    metrics: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """The window as decisions keep it."""
        return {**asdict(self.load), "metrics": self.metrics}


def join_windows(
    windows: Sequence[TrafficWindow], sla: Sla | None, *, age_s: float, fidelity: Fidelity
) -> Observation | None:
    """One observation of all ``windows``, the last of which ended ``age_s`` seconds ago.

    A window that cannot have happened is refused as a whole, because it would stay in an average.
    None if there is no other window: no data is not silence.
    """
    windows = [window for window in windows if window.is_sound]
    if not windows:
        return None
    timings = tuple(timing for window in windows for timing in window.timings)
    measurement = Measurement(fidelity=fidelity, timings=timings, driver_lag_ms=Distribution.of(()))
    report = judge(sla, measurement) if sla is not None and timings else None
    window_s = sum(window.window_s for window in windows)
    load = LoadWindow(
        window_s=window_s,
        rate_rps=sum(window.num_arrived for window in windows) / window_s,
        mean_input_tokens=_mean([t.prompt_tokens for t in timings]),
        mean_output_tokens=_mean([t.output_tokens for t in timings]),
        num_requests=sum(t.outcome is not Outcome.CUT for t in timings),
        is_sla_met=None if report is None else report.is_met,
        age_s=age_s,
    )
    metrics = flat_metrics(measurement, sla if report is not None else None)
    return Observation(
        load=load,
        measurement=measurement,
        report=report,
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
    )


def _is_sound(timing: RequestTiming) -> bool:
    times = np.array((timing.scheduled_s, *timing.token_s), dtype=np.float64)
    return (
        0 <= timing.prompt_tokens <= MAX_COUNT
        and bool(np.all(np.abs(times) <= MAX_TIME_S))
        and bool(np.all(np.diff(times) >= -CLOCK_S))
    )


def _mean(values: Sequence[int]) -> float | None:
    return float(np.mean(values)) if values else None
