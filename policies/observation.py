"""What the controller sees of an engine's traffic: windows of exact timings, joined and judged.

The live loop builds the windows from heartbeats, a simulated run from its own timings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from engine.spec.measurement import Distribution, Fidelity, Measurement, Outcome, RequestTiming
from policies.attainment import SlaReport, judge
from policies.decision import LoadWindow
from policies.report import flat_metrics
from policies.sla import Sla


@dataclass(frozen=True, kw_only=True)
class TrafficWindow:
    """``window_s`` seconds of one engine: requests it accepted, timings of those that ended."""

    window_s: float
    num_arrived: int
    timings: tuple[RequestTiming, ...]


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One stretch of an engine's traffic, judged by its SLA."""

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

    None when there is no window: no data is not silence.
    """
    if not windows:
        return None
    timings = tuple(timing for window in windows for timing in window.timings)
    measurement = Measurement(fidelity=fidelity, timings=timings, driver_lag_ms=Distribution.of(()))
    report = judge(sla, measurement) if sla is not None and timings else None
    load = LoadWindow(
        rate_rps=sum(w.num_arrived for w in windows) / sum(w.window_s for w in windows),
        mean_input_tokens=_mean([t.prompt_tokens for t in timings]),
        mean_output_tokens=_mean([t.output_tokens for t in timings]),
        num_requests=sum(t.outcome is not Outcome.CUT for t in timings),
        is_sla_met=None if report is None else report.is_met,
        age_s=age_s,
    )
    return Observation(
        load=load,
        measurement=measurement,
        report=report,
        metrics=flat_metrics(measurement, sla if report is not None else None),
    )


def _mean(values: Sequence[int]) -> float | None:
    return float(np.mean(values)) if values else None
