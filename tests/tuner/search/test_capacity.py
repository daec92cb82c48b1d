"""A job's recommendation tells what rate each plan carries, where that is asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from engine.spec.measurement import Fidelity
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.capacity_table import CapacityTable, CarriedRate
from policies.points import OperatingPoint
from tuner.capacity.live import LiveCapacity
from tuner.capacity.probe import Probe
from tuner.capacity.search import Capacity
from tuner.search.capacity import find_capacity_table
from tuner.search.context import TuningContext
from tuner.search.live_capacity import Driven, as_cut, as_driven
from tuner.search.prepare import prepare
from tuner.search.spec import TuningSpec
from tuner.search.tune import tune
from tuner.spec.errors import TunerError

SPEC = TuningSpec(
    model_dir="llama-3.1-8b",
    num_devices=2,
    workload="poisson:rate=20,input=1024,output=2,requests=30",
    sla="p95_ttft_ms<=150",
    trials=1,
    hardware="2xh100",
    max_model_len=2048,
    capacity_table=True,
)


@dataclass(kw_only=True)
class Machine:
    """Carries so many times what simulation says of each plan, and remembers what it was asked."""

    shares: dict[str, float]
    notes: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    simulated: dict[str, float] = field(default_factory=dict)

    def drive(self, expected: CarriedRate) -> Driven | None:
        plan = str(expected.settings.plan)
        self.asked.append(plan)
        if plan not in self.shares:
            return None
        rate = self.simulated.get(plan, expected.rate_rps) * self.shares[plan]
        entry = replace(
            expected,
            rate_rps=rate,
            low_rps=0.97 * rate,
            high_rps=1.03 * rate,
            fidelity=Fidelity.MEASURED,
        )
        return Driven(entry=entry, least_rps=rate / 2)


ONE = Settings(plan=ParallelPlan())


@pytest.fixture(scope="module")
def context() -> Iterator[TuningContext]:
    with prepare(SPEC) as found:
        yield found


@pytest.fixture(scope="module")
def simulated(context: TuningContext) -> dict[str, float]:
    """What the table offers where nothing is driven, by plan."""
    table = find_capacity_table(context, ONE, Machine(shares={})).table
    assert all(entry.fidelity is Fidelity.SIMULATED for entry in table.entries)
    return {str(entry.settings.plan): entry.rate_rps for entry in table.entries}


@pytest.mark.slow
def test_what_the_table_offers_is_driven_what_is_recommended_first(
    context: TuningContext, simulated: dict[str, float]
) -> None:
    machine = Machine(shares=dict.fromkeys(simulated, 0.9), simulated=simulated)
    recommended = replace(ONE, caps=replace(ONE.caps, max_num_seqs=256))
    table = find_capacity_table(context, recommended, machine).table
    assert machine.asked == ["tp=1", "dp=2"]
    assert table.entries[0].settings == recommended, "64 sequences carry no more"
    assert all(entry.fidelity is Fidelity.MEASURED for entry in table.entries)
    assert table.entries[1].rate_rps == pytest.approx(0.9 * simulated["dp=2"])


@pytest.mark.slow
def test_more_devices_that_turn_out_to_carry_less_are_left_out(
    context: TuningContext, simulated: dict[str, float]
) -> None:
    machine = Machine(shares={"tp=1": 1.0, "dp=2": 0.4}, simulated=simulated)
    table = find_capacity_table(context, ONE, machine).table
    assert [str(entry.settings.plan) for entry in table.entries] == ["tp=1"]


@pytest.mark.slow
def test_what_was_not_driven_is_moved_by_what_was_and_less_sure(
    context: TuningContext, simulated: dict[str, float]
) -> None:
    machine = Machine(shares={"tp=1": 0.8}, simulated=simulated)
    one, two = find_capacity_table(context, ONE, machine).table.entries
    assert (one.fidelity, two.fidelity) == (Fidelity.MEASURED, Fidelity.SIMULATED)
    assert two.rate_rps == pytest.approx(0.8 * simulated["dp=2"], rel=0.02)
    assert two.high_rps is not None
    assert math.log(two.high_rps / two.low_rps) > 0.2


@pytest.mark.slow
def test_a_recommendation_has_the_table() -> None:
    document = tune(SPEC).to_json()
    assert TuningSpec.from_json(document["spec"]) == SPEC
    table = CapacityTable.from_json(document["recommendation"]["capacity_table"])
    assert [entry.num_devices for entry in table.entries] == [1, 2]
    assert table.entries[0].rate_rps < table.entries[1].rate_rps


def test_a_closed_loop_is_refused_before_anything_is_simulated() -> None:
    closed = "closed:concurrency=4,input=64,output=4,requests=8"
    with pytest.raises(TunerError, match="a capacity table is of rates"):
        prepare(TuningSpec.from_json({**SPEC.to_json(), "workload": closed}))


def searched(*probes: tuple[float, bool], factor: float | None) -> Capacity:
    point = OperatingPoint(settings=ONE, fidelity=Fidelity.MEASURED, metrics={})
    made = [
        Probe(factor=at, draw=n, num_requests=50, point=point, is_dependable=met, chance=float(met))
        for n, (at, met) in enumerate(probes)
    ]
    return Capacity(
        factor=factor,
        low=factor,
        high=factor,
        is_at_least=False,
        binding=None,
        cliff=None,
        probes=tuple(made),
    )


def test_of_few_probes_the_interval_is_no_narrower_than_what_was_seen() -> None:
    found = as_driven(searched((1.25, False), (1.0, True), (1.1, False), factor=1.05), ONE, 10.0)
    assert found.entry is not None
    assert (found.entry.low_rps, found.entry.rate_rps, found.entry.high_rps) == (10.0, 10.5, 11.0)
    assert found.least_rps == 10.0


def test_where_no_probe_was_carried_the_lowest_is_told() -> None:
    found = as_driven(searched((1.25, False), (0.8, False), factor=None), ONE, 10.0)
    assert found.entry is None
    assert found.least_rps == 8.0


@pytest.mark.parametrize(("cut_rps", "most_rps"), [(2.5, 2.5), (0.0, 0.1)])
def test_a_plan_too_slow_for_one_probe_carries_no_more_than_ended(
    cut_rps: float, most_rps: float
) -> None:
    live = LiveCapacity(
        found=searched(factor=None), late=(), undrivable=None, seconds=10.0, cut_rps=cut_rps
    )
    found = as_cut(live)
    assert found is not None
    assert (found.entry, found.least_rps) == (None, most_rps)
    assert as_cut(replace(live, cut_rps=None)) is None
