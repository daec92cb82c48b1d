"""What settings carry is measured on an engine that is really served."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine.models.create import create_model
from engine.spec.measurement import Fidelity
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.capacity_table import CarriedRate
from tuner.search.context import TuningContext
from tuner.search.live_capacity import MOST_DRIVEN, Driver
from tuner.search.prepare import prepare
from tuner.search.remaining_budget import RemainingBudget
from tuner.search.spec import TuningSpec

pytestmark = pytest.mark.slow

EXPECTED = CarriedRate(
    settings=Settings(plan=ParallelPlan()), rate_rps=40.0, low_rps=40.0, high_rps=40.0
)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TuningContext]:
    folder: Path = tmp_path_factory.mktemp("models") / "tiny"
    create_model(folder, preset="tiny", seed=1)
    spec = TuningSpec(
        model_dir=str(folder),
        num_devices=1,
        workload="poisson:rate=30,input=24,output=4,requests=60",
        sla="p50_ttft_ms<=400",
        trials=1,
        profile_seconds=4,
        kv_cache_mib=16,
        capacity_table=True,
        capacity_seconds=10,
    )
    with prepare(spec) as found:
        yield found


def driver(context: TuningContext, budget: str | None = None) -> Driver:
    context.spec = replace(context.spec, budget=budget)
    left = RemainingBudget(context=context, trials=[], is_final=True)
    return Driver(context=context, budget=left, is_cancelled=lambda: False)


def test_an_engine_is_served_and_driven_and_its_device_time_is_told(context: TuningContext) -> None:
    context.final_costs.clear()
    found = driver(context).drive(EXPECTED)
    assert found is not None
    assert found.entry is not None
    assert found.entry.fidelity is Fidelity.MEASURED
    assert found.entry.low_rps <= found.entry.rate_rps
    (cost,) = context.final_costs
    assert cost.device_seconds >= 5
    assert context._live is None


def test_what_the_budget_does_not_hold_is_not_driven_and_said(context: TuningContext) -> None:
    context.final_costs.clear()
    poor = driver(context, budget="device_seconds=5")
    assert poor.drive(EXPECTED) is None
    assert "budget" in poor.notes[0]
    assert not context.final_costs


def test_only_so_many_plans_are_driven(context: TuningContext) -> None:
    busy = driver(context)
    busy._num_driven = MOST_DRIVEN
    assert busy.drive(EXPECTED) is None
    assert "plans were driven already" in busy.notes[0]


def test_plans_of_more_ranks_than_this_machine_has_are_left_to_simulation(
    context: TuningContext,
) -> None:
    many = replace(EXPECTED, settings=Settings(plan=ParallelPlan(dp=64)))
    asked = driver(context)
    assert asked.drive(many) is None
    assert asked.notes == []
