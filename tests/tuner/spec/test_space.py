from __future__ import annotations

import pytest

from engine.spec.feasible import infeasible_reasons
from engine.spec.plan import ParallelPlan
from tests.tuner.worlds import SMALL
from tuner.spec.errors import TunerError
from tuner.spec.space import build_space


def fits(plan: ParallelPlan) -> None:
    """Every plan fits the memory."""


def too_small(plan: ParallelPlan) -> None:
    raise TunerError(f"{plan}: 9 GB of weights, 8 GB usable")


def test_every_plan_is_either_feasible_or_pruned_with_numbers() -> None:
    space = build_space(SMALL, 8, check_memory=fits, max_model_len=4096)
    assert len(space.plans) > 30
    assert all(not infeasible_reasons(plan, SMALL) for plan in space.plans)
    reasons = {p.plan: p.reasons for p in space.pruned}
    assert reasons["tp=3"][0] == "8 query heads do not divide by sp*tp = 1*3 = 3"
    assert "pp=5 stages for 4 layers" in reasons["pp=5"][0]
    assert len(set(map(str, space.plans)) & set(reasons)) == 0


def test_the_baseline_is_the_smallest_plan_without_options() -> None:
    space = build_space(SMALL, 4, check_memory=fits, max_model_len=4096)
    assert space.baseline.plan == ParallelPlan()
    assert space.envelope.max_num_seqs >= space.baseline.caps.max_num_seqs


def test_memory_prunes_plans_and_says_how_much_is_missing() -> None:
    def only_two(plan: ParallelPlan) -> None:
        if plan.tp < 2:
            too_small(plan)

    space = build_space(SMALL, 2, check_memory=only_two, max_model_len=4096)
    assert space.plans == (ParallelPlan(tp=2),)
    assert "tp=1: 9 GB of weights" in next(p for p in space.pruned if p.plan == "tp=1").reasons[0]


def test_no_feasible_plan_at_all_is_an_error_with_the_reasons() -> None:
    with pytest.raises(TunerError, match="9 GB of weights"):
        build_space(SMALL, 2, check_memory=too_small, max_model_len=4096)


def test_plans_on_very_many_devices_are_listed_without_trying_all_degrees() -> None:
    space = build_space(SMALL, 256, check_memory=fits, max_model_len=4096, least_devices=256)
    assert {plan.world_size for plan in space.plans} == {256}
    assert len(set(space.plans)) == len(space.plans)


def test_plans_on_fewer_devices_are_left_out_where_all_are_to_be_used() -> None:
    space = build_space(SMALL, 4, check_memory=fits, max_model_len=4096, least_devices=4)
    assert {plan.world_size for plan in space.plans} == {4}
