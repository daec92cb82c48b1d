"""Metrics as CONVENTIONS define them: from the scheduled time, and only where they apply."""

from __future__ import annotations

import pytest

from engine.spec.measurement import (
    Distribution,
    Fidelity,
    Measurement,
    Outcome,
    RequestTiming,
    gaps_ms,
)


def timing(*token_s: float, scheduled_s: float = 0.0, **kwargs: object) -> RequestTiming:
    defaults: dict[str, object] = {"sent_s": scheduled_s, "prompt_tokens": 10}
    return RequestTiming(scheduled_s=scheduled_s, token_s=token_s, **(defaults | kwargs))


def measurement(*timings: RequestTiming, lag_ms: float = 0.0) -> Measurement:
    return Measurement(
        fidelity=Fidelity.MEASURED, timings=timings, driver_lag_ms=Distribution.of([lag_ms])
    )


def test_first_token_time_counts_from_when_the_request_should_have_been_sent() -> None:
    late = timing(1.5, 2.0, scheduled_s=1.0, sent_s=1.4)
    assert late.ttft_ms == pytest.approx(500)
    assert late.e2e_ms == pytest.approx(1000)


def test_time_per_output_token_leaves_the_first_token_out() -> None:
    assert timing(1.0, 1.1, 1.4).tpot_ms == pytest.approx(200)
    assert timing(1.0, 1.1, 1.4).itl_ms == pytest.approx((100, 300))


def test_one_token_outputs_have_no_time_per_output_token() -> None:
    assert timing(1.0).tpot_ms is None
    assert measurement(timing(1.0)).tpot_ms.mean is None


def test_throughput_runs_from_first_arrival_to_last_completion() -> None:
    run = measurement(timing(2.0, 3.0, scheduled_s=1.0), timing(4.0, 6.0, scheduled_s=3.5))
    assert run.window_s == pytest.approx(5.0)
    assert run.throughput_tokens_per_s == pytest.approx(4 / 5)
    assert run.throughput_total_tokens_per_s == pytest.approx(24 / 5)


def test_requests_that_did_not_complete_enter_no_latency() -> None:
    run = measurement(timing(1.0, 2.0), timing(9.0, outcome=Outcome.ERRORED), timing())
    assert run.ttft_ms.mean == pytest.approx(1000)
    assert run.count(Outcome.ERRORED) == 1


def test_nothing_observed_is_none_and_never_zero() -> None:
    empty = measurement()
    assert empty.ttft_ms.to_json() == {
        "mean": None,
        "p50": None,
        "p90": None,
        "p95": None,
        "p99": None,
    }
    assert empty.throughput_tokens_per_s == 0.0


def test_gaps_lie_within_requests_and_not_between_them() -> None:
    timings = [timing(1.0, 1.1, 1.4), timing(), timing(2.0), timing(3.0, 3.25), timing(9.0)]
    assert gaps_ms(timings).tolist() == [gap for t in timings for gap in t.itl_ms]
    assert gaps_ms([]).tolist() == gaps_ms([timing(), timing()]).tolist() == []
