"""Attainment, goodput and violations: errors are misses, cut requests count on neither side."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.spec.measurement import Outcome, RequestTiming
from policies.attainment import judge
from policies.sla import Sla
from tests.policies.runs import failed, run, timing

timings = st.lists(
    st.builds(
        timing,
        ttft_ms=st.floats(min_value=-10, max_value=1000),
        gap_ms=st.floats(min_value=0, max_value=100),
        tokens=st.integers(min_value=0, max_value=6),
        scheduled_s=st.floats(min_value=0, max_value=10),
        outcome=st.sampled_from(Outcome),
    ),
    max_size=20,
)


def test_each_request_is_held_to_every_percentile_constraint_by_its_own_value() -> None:
    sla = Sla.parse("p95_ttft_ms<=150,p95_tpot_ms<=20,attainment>=0.5")
    report = judge(sla, run([timing(), timing(ttft_ms=200), timing(gap_ms=30), timing()]))
    assert report.attainment == 0.5
    assert report.met == 2
    assert {str(v.constraint) for v in report.violations} == {
        "p95_ttft_ms<=150",
        "p95_tpot_ms<=20",
    }


def test_errors_and_timeouts_are_misses_and_cut_requests_are_left_out() -> None:
    sla = Sla.parse("p95_ttft_ms<=150")
    report = judge(
        sla,
        run([timing(), failed(), failed(Outcome.TIMED_OUT), *[failed(Outcome.CUT)] * 5]),
    )
    assert report.attainment == pytest.approx(1 / 3)


def test_a_run_cannot_pass_a_percentile_by_failing_its_slow_requests() -> None:
    sla = Sla.parse("p95_ttft_ms<=150")
    few, many = [timing()] * 99 + [failed()], [timing()] * 90 + [failed()] * 10
    assert judge(sla, run(few)).is_met
    report = judge(sla, run(many))
    assert [v.actual for v in report.violations] == [math.inf]


def test_failures_count_against_inter_token_latency_and_means_too() -> None:
    broken = run([timing()] * 10 + [failed()] * 10)
    for text in ("p95_itl_ms<=50", "p95_tpot_ms<=50", "mean_e2e_ms<=500"):
        assert not judge(Sla.parse(text), broken).is_met


@pytest.mark.parametrize(
    "invalid",
    [timing(ttft_ms=0), timing(ttft_ms=-5), timing(tokens=0), timing(ttft_ms=math.nan)],
)
def test_a_missing_or_non_positive_ttft_is_never_a_pass(invalid: RequestTiming) -> None:
    report = judge(Sla.parse("p95_tpot_ms<=50"), run([timing(), invalid]))
    assert report.invalid == 1
    assert report.attainment == 0.5


def test_one_token_outputs_have_no_tpot_and_are_counted() -> None:
    sla = Sla.parse("p95_tpot_ms<=5,p95_itl_ms<=5,p95_ttft_ms<=500")
    report = judge(sla, run([timing(tokens=1), timing(tokens=1)]))
    assert report.is_met
    assert report.attainment == 1.0
    assert report.not_applicable == {"p95_tpot_ms": 2, "p95_itl_ms": 2}
    told = "met (no output has two tokens to judge p95_tpot_ms<=5, p95_itl_ms<=5 by)"
    assert report.verdict == told


def test_an_empty_run_is_not_met_and_has_no_attainment() -> None:
    report = judge(Sla.parse("p95_ttft_ms<=150,p95_tpot_ms<=5,attainment>=0.1"), run([]))
    assert report.attainment is None
    assert [v.actual for v in report.violations] == [None, None, None]
    assert report.headroom is None


def test_a_bound_without_a_percentile_must_hold_for_all_unless_attainment_says_how_many() -> None:
    mixed = run([timing()] * 9 + [timing(ttft_ms=900)])
    assert not judge(Sla.parse("ttft:150"), mixed).is_met
    assert judge(Sla.parse("ttft:150,attainment>=0.9"), mixed).is_met
    assert not judge(Sla.parse("ttft:150,attainment>=0.95"), mixed).is_met


def test_goodput_counts_good_requests_over_the_whole_window() -> None:
    report = judge(
        Sla.parse("p95_ttft_ms<=150"),
        run([timing(), timing(scheduled_s=1.0, ttft_ms=1000, tokens=1)]),
    )
    assert report.goodput_rps == pytest.approx(1 / 2.0)


def test_headroom_is_the_smallest_share_of_a_budget_left() -> None:
    sla = Sla.parse("p50_ttft_ms<=200,p50_tpot_ms<=100,attainment>=0.9")
    assert judge(sla, run([timing()] * 10)).headroom == pytest.approx(0.5)


@settings(deadline=None)
@given(timings)
def test_attainment_lies_between_none_and_all(values: list[RequestTiming]) -> None:
    sla = Sla.parse("p95_ttft_ms<=300,p99_itl_ms<=50,mean_e2e_ms<=800,attainment>=0.9")
    report = judge(sla, run(values))
    judged = sum(t.outcome is not Outcome.CUT for t in values)
    assert (report.attainment is None) == (judged == 0)
    if report.attainment is not None:
        assert 0 <= report.attainment <= 1
        assert report.met + report.invalid <= judged
    assert report.goodput_rps >= 0


@settings(deadline=None)
@given(timings, st.integers(min_value=1, max_value=5))
def test_cutting_more_requests_changes_nothing(values: list[RequestTiming], count: int) -> None:
    sla = Sla.parse("p95_ttft_ms<=300,attainment>=0.9")
    cut = [replace(timing(tokens=0), outcome=Outcome.CUT)] * count
    before, after = judge(sla, run(values)), judge(sla, run([*values, *cut]))
    assert before.attainment == after.attainment
    assert before.is_met == after.is_met


@settings(deadline=None)
@given(timings)
def test_one_more_failure_never_raises_attainment(values: list[RequestTiming]) -> None:
    sla = Sla.parse("p95_ttft_ms<=300")
    before = judge(sla, run(values)).attainment
    after = judge(sla, run([*values, failed()])).attainment
    assert after is not None
    assert before is None or after <= before
