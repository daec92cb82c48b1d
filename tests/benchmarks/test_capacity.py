"""Loads drawn by seed, the queue that stands in for the engine, and hours told by cause."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.capacity_causes import CAUSES, Paths, hours_by_cause
from benchmarks.capacity_loads import rates_of
from benchmarks.capacity_mixes import list_mixes, mix_rates
from benchmarks.capacity_ways import CAPS, SLA, ServedOn, serve_oracle, serve_steered
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.attainment import judge
from policies.capacity_table import CapacityTable
from tests.policies.capacity import entry, table
from tuner.workload.parse import parse_workload

LENGTHS = "input=4096,output=128"


def served(replicas: int, rate_rps: float) -> float:
    """What so many servers attain of 20 minutes."""
    settings = Settings(plan=ParallelPlan(dp=replicas), caps=CAPS)
    load = parse_workload(f"poisson:rate={rate_rps},seconds=1200,{LENGTHS}", seed=1)
    run = ServedOn.QUEUE.serve(settings, load, None)
    assert len(run.measurement.timings) == len(load)
    assert run.device_seconds(600.0) == pytest.approx(600.0 * replicas)
    return judge(SLA, run.measurement).attainment or 0.0


def test_a_load_drawn_by_seed_is_the_same_every_time_and_another_one_for_each_seed() -> None:
    drawn = [mix_rates(seed, 60) for seed in range(20)]
    assert all((rates > 0).all() and (rates <= 1).all() for rates in drawn)
    assert np.array_equal(mix_rates(3, 60), drawn[3])
    assert len({float(rates.sum()) for rates in drawn}) == 20


def test_more_servers_attain_more_and_too_few_drown() -> None:
    attained = [served(replicas, 3.3) for replicas in (2, 3, 5)]
    assert attained == sorted(attained)
    assert attained[0] < 0.2
    assert attained[-1] > 0.99


@pytest.fixture(scope="module")
def rates() -> CapacityTable:
    return table(*(entry(n, rate_rps=0.75 * n) for n in range(1, 9)))


def test_hours_by_cause_add_up_to_what_was_taken_more(tmp_path: Path, rates: CapacityTable) -> None:
    load = list_mixes(tmp_path, [5], day_s=1800.0, top_rps=5.0)[0]
    loop = serve_steered(ServedOn.QUEUE, 1800.0, False, None, rates, load)
    oracle = serve_oracle(ServedOn.QUEUE, 1.0, rates, load)
    assert loop.attainment > 0.5
    assert loop.paths is not None
    assert oracle.paths is not None
    end_s = load.workload().arrivals[-1].arrival_s
    hours = hours_by_cause(
        Paths.from_json(loop.paths),
        Paths.from_json(oracle.paths),
        rates_of(load.workload(), rates).rates_rps,
        rates,
        end_s,
    )
    assert set(hours) == set(CAUSES)
    assert sum(hours.values()) == pytest.approx(loop.device_h - oracle.device_h, abs=0.05)
    assert hours["late"] <= 0 <= hours["kept"]
