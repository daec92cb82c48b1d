"""The tightest value that holds when planned, however wrong a look at single settings is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from engine.spec.measurement import Fidelity
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.points import OperatingPoint
from tuner.capacity.search import TIGHTER
from tuner.planner.tightest import TightestSearch, load_scale
from tuner.workload.parse import parse_workload

POINT = OperatingPoint(settings=Settings(), fidelity=Fidelity.SIMULATED, metrics={})
LOAD = parse_workload("poisson:rate=4,input=64,output=4,requests=8", seed=1)


def tightest(holds: Callable[[float], bool], seems: Callable[[float], bool]) -> TightestSearch:
    def by_all(factor: float, plan: ParallelPlan | None) -> OperatingPoint | None:
        return POINT if holds(factor) else None

    def by_one(settings: Settings, factor: float) -> OperatingPoint | None:
        return POINT if seems(factor) else None

    return TightestSearch(
        scale=load_scale(LOAD), by_all=by_all, by_one=by_one, likely=[POINT.settings]
    )


def test_what_holds_is_found_whether_single_settings_seem_better_or_worse() -> None:
    for share in (0.5, 0.9, 1.0, 1.1, 2.0):
        found = tightest(lambda at: at <= 0.3, lambda at, s=share: at <= 0.3 * s).find(0.5)
        assert found is not None
        assert found[0] <= 0.3 < found[0] * TIGHTER


def test_nothing_is_named_where_no_plan_holds() -> None:
    assert tightest(lambda _: False, lambda at: at <= 0.3).find(0.5) is None


def test_what_only_other_plans_hold_is_told_in_few_digits_too() -> None:
    other = replace(POINT, settings=Settings(plan=ParallelPlan(tp=2)))

    def by_all(factor: float, plan: ParallelPlan | None) -> OperatingPoint | None:
        if factor <= 0.1:
            return POINT
        return other if plan is None and factor <= 0.13 else None

    search = tightest(lambda _: False, lambda at: at <= 0.1)
    search.by_all = by_all
    found = search.find(0.5)
    assert found is not None
    assert found[0] <= 0.13 < found[0] * TIGHTER
    assert found[0] == float(f"{found[0]:.3g}")
