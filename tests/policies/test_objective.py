"""What is best depends on what is looked for, and only what meets the SLA competes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.spec.plan import ParallelPlan
from policies.errors import PolicyInputError
from policies.objective import Objective, cost_per_million_tokens
from policies.points import Estimate, OperatingPoint
from policies.select import ChoiceReason, PointRejection, select
from policies.verdict import is_dependable
from tests.policies.test_select import SLA, point, points


def with_throughput(made: OperatingPoint, tokens_per_s: float) -> OperatingPoint:
    told = {"throughput_tokens_per_s": Estimate.exact(tokens_per_s)}
    return replace(made, metrics={**made.metrics, **told})


SMALL = with_throughput(point(120, 30, devices=1), 1000)
QUICK = with_throughput(point(60, 10, devices=4), 1500)
BUSY = with_throughput(point(125, 31, devices=8), 9500)
ROOMY = with_throughput(point(90, 22, 0.999, plan=ParallelPlan(tp=2), devices=2), 1200)
SLOW = with_throughput(point(500, 10, devices=1), 99_000)
ALL = [SMALL, QUICK, BUSY, ROOMY, SLOW]


@pytest.mark.parametrize(
    ("objective", "wanted"),
    [
        (Objective.DEVICES, SMALL),
        (Objective.LATENCY, QUICK),
        (Objective.THROUGHPUT, BUSY),
        (Objective.COST, BUSY),
        (Objective.HEADROOM, ROOMY),
    ],
)
def test_each_objective_finds_its_own(objective: Objective, wanted: OperatingPoint) -> None:
    selection = select(ALL, SLA, objective)
    assert selection.best is wanted
    assert selection.objective is objective
    assert selection.fastest is QUICK, "the fastest is the fastest whatever is looked for"


def test_those_not_chosen_are_told_the_number_that_decided() -> None:
    selection = select(ALL, SLA, Objective.THROUGHPUT)
    assert selection.reason is ChoiceReason.BEST_BY_OBJECTIVE
    told = {id(r.point): r for r in selection.rejected}
    assert told[id(SMALL)].why is PointRejection.WORSE_BY_OBJECTIVE
    assert told[id(SMALL)].detail == "1000 tokens/s against 9500 tokens/s"
    assert told[id(SLOW)].why is PointRejection.VIOLATES_SLA


def test_throughputs_that_hardly_differ_are_told_apart_by_devices() -> None:
    small, large = (
        with_throughput(point(devices=devices), rate) for devices, rate in ((1, 1000), (8, 1001))
    )
    assert select([large, small], SLA, Objective.THROUGHPUT).best is small


def test_a_million_tokens_cost_the_devices_for_as_long_as_they_take() -> None:
    assert cost_per_million_tokens(QUICK, 3.0) == pytest.approx(4 / 1500 * 1e6 / 3600 * 3.0)
    assert cost_per_million_tokens(with_throughput(QUICK, 0), 3.0) == float("inf")


@pytest.mark.parametrize("text", ["", "speed", "LATENCY"])
def test_an_unknown_word_is_refused_with_those_known(text: str) -> None:
    with pytest.raises(PolicyInputError, match="devices, latency"):
        Objective.parse(text)


@given(points, st.sampled_from(Objective))
def test_only_what_is_dependable_is_chosen_and_nothing_dependable_is_better(
    found: list[OperatingPoint], objective: Objective
) -> None:
    best = select(found, SLA, objective).best
    dependable = [p for p in found if is_dependable(p, SLA)]
    assert (best is None) == (not dependable)
    if best is not None:
        assert objective.order(best, SLA) == min(objective.order(p, SLA) for p in dependable)


@given(points)
def test_near_misses_are_of_plans_that_no_dependable_point_has(found: list[OperatingPoint]) -> None:
    selection = select(found, SLA)
    misses = selection.near_misses(SLA, limit=3)
    plans = [miss.point.settings.plan for miss in misses]
    assert len(plans) == len(set(plans)) <= 3
    good = {p.settings.plan for p in found if is_dependable(p, SLA)}
    assert not good & set(plans)
    bad = {p.settings.plan for p in found} - good
    assert len(plans) == min(3, len(bad))
