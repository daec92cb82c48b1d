"""What an engine's agent tells the control plane, as plain JSON. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from engine.policy.document import EnginePolicy
from engine.replica.telemetry import EngineStats
from engine.spec.measurement import RequestTiming
from engine.spec.modes import Mode
from engine.spec.steps import StepSample, size_class

Json = dict[str, Any]


def arrived_total(stats: EngineStats) -> int:
    """Requests that came since start: those that ended, those still in the engine, and those that
    it had no room for. Refused requests are load as well: without them, an engine that sheds would
    look as if it carried all that comes."""
    inside = stats.running + stats.waiting
    return sum(stats.finished.values()) + inside + sum(stats.refused.values())


def heartbeat(
    *,
    window_s: float,
    now_s: float,
    before: EngineStats,
    stats: EngineStats,
    policy: EnginePolicy,
    devices: list[int] | None,
    timings: Sequence[RequestTiming],
    samples: Sequence[StepSample],
) -> Json:
    """One window. Times on the engine's clock are sent as ages, since clocks differ."""
    return {
        "window_s": window_s,
        # A reshape may reset a counter, but arrivals are never negative.
        "arrived": max(0, arrived_total(stats) - arrived_total(before)),
        "policy_version": policy.version,
        "policy": policy.settings.to_json(),
        "devices": devices,
        "stats": asdict(stats),
        "requests": [timing_json(timing, now_s) for timing in timings],
        "steps": aggregate_steps(samples),
    }


def timing_json(timing: RequestTiming, now_s: float) -> Json:
    """One finished request to a hundredth of a millisecond."""
    return {
        "age_ms": round(max(0.0, now_s - timing.scheduled_s) * 1e3, 2),
        "token_ms": [round((s - timing.scheduled_s) * 1e3, 2) for s in timing.token_s],
        "input_tokens": timing.prompt_tokens,
        "outcome": timing.outcome.value,
    }


def aggregate_steps(samples: Iterable[StepSample]) -> list[Json]:
    """Count, seconds and tokens of the steps per mode and power-of-two size class."""
    totals: dict[tuple[Mode, int], Json] = {}
    for sample in samples:
        size = size_class(sample.shape.num_tokens)
        key = (sample.shape.mode, size)
        total = totals.setdefault(
            key,
            {"mode": key[0], "tokens_up_to": size, "steps": 0, "seconds": 0.0, "tokens": 0},
        )
        total["steps"] += 1
        total["seconds"] += sample.step_s
        total["tokens"] += sample.shape.num_tokens
    return [totals[key] for key in sorted(totals)]
