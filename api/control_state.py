"""What the controller sees and remembers, read from heartbeats and kept as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np

from api.policy_document import engine_policy
from engine.config import Caps
from engine.measurement import Distribution, Fidelity, Measurement, Outcome, RequestTiming
from policies.attainment import SlaReport
from policies.controller import ControlMemory, LoadWindow
from policies.decision import SmoothedLoad
from policies.report import flat_metrics
from policies.schedule import HotSettings
from policies.sla import Sla, judge
from store.base import Json
from store.models import Heartbeat


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One window of an engine's traffic, judged by its SLA."""

    load: LoadWindow
    measurement: Measurement
    report: SlaReport | None
    metrics: dict[str, float]

    def to_json(self) -> Json:
        """The window as decisions keep it."""
        return {**asdict(self.load), "metrics": self.metrics}


def observe(
    heartbeats: Sequence[Heartbeat], sla: Sla | None, *, now: datetime
) -> Observation | None:
    """Join the windows that came; None when none did. A gap between them counts as unknown."""
    if not heartbeats:
        return None
    timings = tuple(timing for beat in heartbeats for timing in _timings(beat))
    measurement = Measurement(
        fidelity=Fidelity.MEASURED, timings=timings, driver_lag_ms=Distribution.of(())
    )
    report = judge(sla, measurement) if sla is not None and timings else None
    load = LoadWindow(
        rate_rps=sum(beat.arrived for beat in heartbeats) / sum(b.window_s for b in heartbeats),
        mean_input_tokens=_mean([t.prompt_tokens for t in timings]),
        mean_output_tokens=_mean([t.output_tokens for t in timings]),
        num_requests=sum(t.outcome is not Outcome.CUT for t in timings),
        is_sla_met=None if report is None else report.is_met,
        age_s=max(0.0, (now - heartbeats[-1].received_at).total_seconds()),
    )
    return Observation(
        load=load,
        measurement=measurement,
        report=report,
        metrics=flat_metrics(measurement, sla if report is not None else None),
    )


def hot_settings(effective_policy: Json) -> HotSettings:
    """The hot settings an engine reports."""
    policy = engine_policy(effective_policy)
    return HotSettings(threshold_tokens=policy.threshold_tokens, caps=policy.caps, mode=policy.mode)


def memory_to_json(memory: ControlMemory) -> Json:
    """The controller's memory as JSON."""
    return asdict(memory)


def memory_from_json(document: Mapping[str, Any] | None) -> ControlMemory:
    """Read what :func:`memory_to_json` wrote; nothing kept is an empty memory."""
    if not document:
        return ControlMemory()
    commanded, smoothed = document["commanded"], document["smoothed"]
    return ControlMemory(
        load_band=document["load_band"],
        band_index=document["band_index"],
        commanded=None
        if commanded is None
        else HotSettings(**{**commanded, "caps": Caps(**commanded["caps"])}),
        smoothed=None if smoothed is None else SmoothedLoad(**smoothed),
        changed_s=document["changed_s"],
        misses=document["misses"],
    )


def _timings(beat: Heartbeat) -> list[RequestTiming]:
    received_s = beat.received_at.timestamp()
    timings = []
    for raw in beat.requests:
        scheduled_s = received_s - raw["age_ms"] / 1e3
        timings.append(
            RequestTiming(
                scheduled_s=scheduled_s,
                sent_s=scheduled_s,
                token_s=tuple(scheduled_s + ms / 1e3 for ms in raw["token_ms"]),
                prompt_tokens=raw["input_tokens"],
                outcome=Outcome(raw["outcome"]),
            )
        )
    return timings


def _mean(values: Sequence[int]) -> float | None:
    return float(np.mean(values)) if values else None
