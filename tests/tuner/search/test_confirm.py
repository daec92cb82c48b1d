"""Winners measured again: on enough requests, and with what they teach about their plans."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.spec.measurement import Distribution, Fidelity, Measurement, Outcome, RequestTiming
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from policies.sla import Sla
from tests.tuner.worlds import SMALL, LinearTimer
from tuner.search.confirm import fresh_workload
from tuner.search.evidence import measured_estimates
from tuner.search.simulator import Simulator
from tuner.workload.parse import parse_workload

BURSTY = "azure-like:start=1000,seconds=40,scale=2,requests=70,input_scale=0.02,max_output=32"


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_fresh_draw_of_a_bursty_process_asks_about_as_much(seed: int) -> None:
    """Its draws hold between none and all of the 70 requests, in a few seconds or in forty."""
    like = parse_workload(BURSTY, seed=1)
    fresh = fresh_workload(BURSTY, like, seed=seed)
    assert len(fresh) == pytest.approx(len(like), rel=0.25)
    assert fresh.input_tokens.sum() == pytest.approx(like.input_tokens.sum(), rel=0.25)
    assert fresh.output_tokens.sum() == pytest.approx(like.output_tokens.sum(), rel=0.25)
    assert fresh.span_s == pytest.approx(like.span_s, rel=0.25)


def test_a_fresh_draw_of_a_steady_process_is_another_one() -> None:
    spec = "poisson:rate=5,input=64,output=16,requests=40"
    like = parse_workload(spec, seed=1)
    fresh = fresh_workload(spec, like, seed=2)
    assert len(fresh) == 40
    assert fresh.arrivals != like.arrivals


def test_a_fresh_draw_of_a_closed_loop_has_other_lengths() -> None:
    spec = "closed:concurrency=4,input=64,output=16,requests=40,input_cv=0.5"
    like = parse_workload(spec, seed=1)
    fresh = fresh_workload(spec, like, seed=2)
    assert fresh.closed == like.closed
    assert fresh.arrivals != like.arrivals


def run_of(count: int) -> Measurement:
    """Requests that all had their two tokens in time."""
    timings = tuple(
        RequestTiming(
            scheduled_s=float(n),
            sent_s=float(n),
            token_s=(n + 0.1, n + 0.12),
            prompt_tokens=8,
            outcome=Outcome.COMPLETED,
        )
        for n in range(count)
    )
    return Measurement(
        fidelity=Fidelity.MEASURED, timings=timings, driver_lag_ms=Distribution.of([0.0])
    )


def test_three_requests_in_time_do_not_make_sure_of_the_next_thousand() -> None:
    sla = Sla.parse("p95_ttft_ms<=500,attainment>=0.9")
    few, many = (measured_estimates(run_of(n), sla, seed=0)["attainment"] for n in (3, 300))
    assert few.value == many.value == 1.0
    assert few.low < 0.6
    assert many.low > 0.98


def test_a_plan_that_turned_out_slower_is_slower_under_all_its_settings() -> None:
    workload = parse_workload("poisson:rate=2,input=64,output=16,requests=20", seed=0)
    simulator = Simulator(
        model=SMALL,
        sla=Sla.parse("p95_ttft_ms<=500"),
        timer_of=lambda plan: LinearTimer(stages=plan.pp),
        blocks_of=lambda _: 500,
        block_size=16,
        max_model_len=1024,
        interval=0.1,
    )
    other = Settings(plan=ParallelPlan(), caps=Caps(max_num_seqs=4, max_num_batched_tokens=64))
    before = simulator.point(other, workload).metrics["p95_tpot_ms"]
    simulator.slow_down(ParallelPlan(), 0.7)
    after = simulator.point(other, workload).metrics["p95_tpot_ms"]
    assert after.value > 1.8 * before.value
    assert after.low > before.high
