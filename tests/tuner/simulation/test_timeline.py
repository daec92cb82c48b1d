from __future__ import annotations

import pytest

from engine.spec.measurement import Distribution, Fidelity, Measurement, Outcome, RequestTiming
from engine.spec.modes import BASE, SHIFT, Mode
from engine.spec.steps import StepShape
from policies.sla import Sla
from tuner.simulation.log import Segment
from tuner.simulation.timeline import (
    MAX_BINS,
    attainment_line,
    build_step_line,
    build_timeline,
    gap_percentiles,
    peak_active,
)


def run_of(*timings: RequestTiming) -> Measurement:
    return Measurement(
        fidelity=Fidelity.SIMULATED, timings=timings, driver_lag_ms=Distribution.of([0.0])
    )


def request(arrived_s: float, *token_s: float) -> RequestTiming:
    outcome = Outcome.COMPLETED if token_s else Outcome.ERRORED
    return RequestTiming(
        scheduled_s=arrived_s,
        sent_s=arrived_s,
        token_s=token_s,
        prompt_tokens=8,
        outcome=outcome,
    )


def segment(mode: Mode, start_s: float, end_s: float, *, kv_usage: float = 0.5) -> Segment:
    return Segment(
        replica=0,
        shape=StepShape(mode=mode, num_seqs=1, num_decode_tokens=1),
        start_s=start_s,
        end_s=(end_s,),
        busy_s=end_s - start_s,
        num_waiting=0,
        kv_usage=kv_usage,
    )


def test_step_time_by_mode_is_spread_over_the_bins_it_ran_in() -> None:
    line = build_timeline(run_of(request(0.0, 2.0, 10.0)))
    parts = [segment(BASE, 0.0, 0.25, kv_usage=0.2), segment(SHIFT, 0.25, 10.0)]
    steps = build_step_line(parts, line, start_s=0.0)
    assert sum(steps.busy_s[BASE]) == pytest.approx(0.25)
    assert sum(steps.busy_s[SHIFT]) == pytest.approx(9.75)
    assert steps.share(BASE)[:4] == pytest.approx((1.0, 1.0, 0.5, 0.0))
    assert steps.kv_usage[:4] == (0.2, None, 0.5, None)


def test_waiting_and_running_requests_are_counted_by_the_time_they_spend() -> None:
    line = build_timeline(run_of(request(0.0, 2.0, 10.0), request(4.0, 6.0, 10.0)))
    assert line.bin_s == 0.1
    assert sum(line.waiting) * line.bin_s == pytest.approx(4.0)
    assert sum(line.running) * line.bin_s == pytest.approx(8.0 + 4.0)
    assert max(line.running) == pytest.approx(2.0)
    assert sum(line.output_tokens_per_s) * line.bin_s == pytest.approx(4)


def test_latencies_stand_where_their_requests_arrived_and_gaps_are_none() -> None:
    line = build_timeline(run_of(request(0.0, 2.0, 10.0), request(5.0, 6.0, 10.0)))
    at = [round(start, 6) for start, value in zip(line.starts_s, line.ttft_p50_ms, strict=True)
          if value is not None]  # fmt: skip
    assert at == [0.0, 5.0]
    assert line.ttft_p50_ms[0] == pytest.approx(2000)
    assert line.tpot_p95_ms[50] == pytest.approx(4000)


@pytest.mark.parametrize("span_s", [0.0, 0.004, 1.0, 59.0, 900.0, 86_400.0])
def test_there_are_never_too_many_bins(span_s: float) -> None:
    line = build_timeline(run_of(request(3.0, 3.0 + span_s / 2, 3.0 + span_s)))
    assert 1 <= len(line.arrived) <= MAX_BINS
    assert len(line.arrived) == len(line.running) == len(line.tpot_p50_ms)
    assert sum(line.arrived) == sum(line.finished) == 1


def test_requests_without_a_token_count_as_arrived_only() -> None:
    line = build_timeline(run_of(request(0.0), request(1.0)))
    assert sum(line.arrived) == 2
    assert sum(line.finished) == 0
    assert set(line.ttft_p50_ms) == {None}


def test_a_closed_loop_never_has_more_requests_than_clients() -> None:
    runs = [request(float(i), i + 0.5, i + 1.0) for i in range(5)]
    assert peak_active(run_of(*runs)) == 1


def test_gaps_between_tokens_stand_where_they_ended() -> None:
    run = run_of(request(0.0, 2.0, 2.5, 10.0), request(5.0, 6.0))
    line = build_timeline(run)
    found = gap_percentiles(run, line, 50)
    at = {round(t, 6): v for t, v in zip(line.starts_s, found, strict=True) if v is not None}
    assert at == pytest.approx({2.5: 500.0, 10.0: 7500.0})


def test_attainment_stands_where_its_requests_arrived_and_errors_are_misses() -> None:
    run = run_of(request(0.0, 0.2), request(0.01, 2.0), request(5.0, 5.1), request(8.0))
    line = build_timeline(run)
    found = attainment_line(run, line, Sla.parse("p95_ttft_ms<=500"))
    at = {round(t, 6): v for t, v in zip(line.starts_s, found, strict=True) if v is not None}
    assert list(at.values()) == [0.5, 1.0, 0.0]
