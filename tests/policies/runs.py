"""Measurements made by hand, for tests of what is derived from them."""

from __future__ import annotations

from collections.abc import Sequence

from engine.spec.measurement import Distribution, Fidelity, Measurement, Outcome, RequestTiming


def timing(
    *,
    ttft_ms: float = 100.0,
    gap_ms: float = 10.0,
    tokens: int = 5,
    scheduled_s: float = 0.0,
    outcome: Outcome = Outcome.COMPLETED,
) -> RequestTiming:
    """A request whose tokens come ``ttft_ms`` after its schedule and then every ``gap_ms``."""
    first_s = scheduled_s + ttft_ms / 1e3
    return RequestTiming(
        scheduled_s=scheduled_s,
        sent_s=scheduled_s,
        token_s=tuple(first_s + i * gap_ms / 1e3 for i in range(tokens)),
        prompt_tokens=20,
        outcome=outcome,
    )


def run(timings: Sequence[RequestTiming]) -> Measurement:
    return Measurement(
        fidelity=Fidelity.MEASURED,
        timings=tuple(timings),
        driver_lag_ms=Distribution.of([0.0, 1.0]),
    )


def failed(outcome: Outcome = Outcome.ERRORED) -> RequestTiming:
    return timing(tokens=0, outcome=outcome)
