"""What runs of some plans let be believed of others."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.capacity_table import CarriedRate
from tuner.capacity.learned import below, corrected

ONE, TENSOR, PIPELINE = ParallelPlan(), ParallelPlan(tp=2), ParallelPlan(pp=2)
ENTRY = CarriedRate(
    settings=Settings(plan=ParallelPlan(sp=2)), rate_rps=10.0, low_rps=9.5, high_rps=11.0
)


def width(entry: CarriedRate) -> float:
    assert entry.high_rps is not None
    return math.log(entry.high_rps / entry.low_rps)


def test_without_any_run_a_simulated_entry_stays_as_it_is() -> None:
    assert corrected(ENTRY, {}, doubt=0.2) == ENTRY


@given(st.floats(-1.0, 6.0), st.floats(0.0, 0.4))
def test_one_run_lowers_others_by_its_ratio_and_raises_none(ratio: float, doubt: float) -> None:
    found = corrected(ENTRY, {TENSOR: ratio}, doubt=doubt)
    assert found.rate_rps == pytest.approx(10 * math.exp(min(0.0, ratio)))
    assert found.low_rps < 0.95 * found.rate_rps
    assert width(found) > width(ENTRY)


def test_runs_that_disagree_leave_more_doubt_and_many_that_agree_less() -> None:
    few = corrected(ENTRY, {TENSOR: -0.5}, doubt=0.2)
    more = {ParallelPlan(pp=2), ParallelPlan(dp=2), ParallelPlan(sp=2, shift=True), TENSOR}
    alike = corrected(ENTRY, dict.fromkeys(more, -0.5), doubt=0.2)
    apart = corrected(ENTRY, {TENSOR: -0.9, PIPELINE: -0.1}, doubt=0.2)
    assert width(alike) < width(few) < width(apart)


def test_plans_of_as_many_devices_tell_most() -> None:
    """Two ranks share their cores with the front end; one rank leaves it a core."""
    known = {ONE: 0.0, TENSOR: -0.5}
    found = corrected(ENTRY, known, doubt=0.1)
    assert found.rate_rps == pytest.approx(10 * math.exp(-0.5))
    larger = CarriedRate(
        settings=Settings(plan=ParallelPlan(dp=2, tp=2)), rate_rps=20, low_rps=19, high_rps=21
    )
    assert width(corrected(larger, known, doubt=0.1)) > width(found) + 2 * 0.5


def test_a_rate_that_was_not_carried_lies_above_all_that_is_believed() -> None:
    found = below(ENTRY, 4.0)
    assert found.low_rps < found.rate_rps <= 4.0 == found.high_rps
    assert below(ENTRY, 20.0).rate_rps == 10.0
