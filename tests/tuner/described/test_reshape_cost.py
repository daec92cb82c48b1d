"""What a reshape costs: processes, weights, warm-up, graphs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from tuner.backends import load_backend
from tuner.described.energy import energy_of
from tuner.described.node import Node
from tuner.described.reshape_cost import (
    CPU_RANKS,
    ReshapeTimes,
    reshape_cost,
    reshape_seconds,
    reshape_times,
)
from tuner.hardware import Launch, Precision, parse_hardware
from tuner.simulation.steering import PlannedChanges
from tuner.spec.errors import TunerError
from tuner.work.models import load_model
from tuner.workload.parse import parse_workload

TIMES = ReshapeTimes(
    source="test",
    is_measured=False,
    process_s=2.0,
    rank_bytes_per_s=10e9,
    node_bytes_per_s=40e9,
    warm_up_s=1.0,
    capture_s=5.0,
)


def node(backend: str = "gearshift") -> Node:
    return Node(
        hardware=parse_hardware("8xh200"),
        model=load_model("llama-3.1-70b"),
        precision=Precision.parse("fp8"),
        backend=load_backend(backend),
    )


def test_parts_follow_each_other_and_ranks_share_the_nodes_bandwidth() -> None:
    alone = TIMES.cost(weight_bytes_per_rank=20e9, num_ranks=1, num_captures=1)
    assert (alone.process_s, alone.load_s, alone.warm_up_s, alone.capture_s) == (2, 2, 1, 5)
    assert alone.seconds == 10
    crowded = TIMES.cost(weight_bytes_per_rank=20e9, num_ranks=8, num_captures=1)
    assert crowded.load_s == pytest.approx(4.0)


def test_a_shift_plan_captures_graphs_of_both_modes() -> None:
    served = node()
    plain = reshape_cost(served, ParallelPlan(sp=8), TIMES)
    shift = reshape_cost(served, ParallelPlan(sp=8, shift=True), TIMES)
    assert shift.capture_s == 2 * plain.capture_s
    assert shift.load_s == plain.load_s
    eager = replace(served, backend=replace(served.backend, shift_launch=Launch.EAGER))
    assert reshape_cost(eager, ParallelPlan(sp=8, shift=True), TIMES).capture_s == plain.capture_s


def test_a_second_copy_of_the_weights_is_loaded_too() -> None:
    plan = ParallelPlan(sp=8, shift=True)
    assert (
        reshape_cost(node("arctic"), plan, TIMES).load_s > reshape_cost(node(), plan, TIMES).load_s
    )


def test_more_ranks_hold_less_each_and_load_no_slower() -> None:
    cost = reshape_seconds(node())
    assert cost(ParallelPlan(tp=8)) <= cost(ParallelPlan(tp=2))
    assert cost(ParallelPlan(dp=4, tp=2)) > cost(ParallelPlan(tp=8))


def test_every_figure_says_where_it_comes_from() -> None:
    assert CPU_RANKS.is_measured
    for name in ("gearshift", "vllm"):
        times = reshape_times(name)
        assert not times.is_measured
        assert times.source.startswith("guess")


def test_impossible_figures_are_refused() -> None:
    with pytest.raises(TunerError, match="below 0"):
        replace(TIMES, process_s=-1.0)
    with pytest.raises(TunerError, match="above 0"):
        replace(TIMES, node_bytes_per_s=0.0)


def test_a_node_reshapes_in_the_middle_of_a_run_and_its_energy_is_told() -> None:
    served = node()
    small = Settings(plan=ParallelPlan(tp=4), caps=Caps(max_num_batched_tokens=2048))
    large = replace(small, plan=ParallelPlan(sp=8, shift=True))
    workload = parse_workload("poisson:rate=3,seconds=40,input=1000,output=100", seed=0)
    steering = PlannedChanges([(10.0, large)], reshape_s=reshape_seconds(served, TIMES))
    result = served.simulate(small, workload, steering=steering)
    (change,) = result.changes
    assert change.in_force_s - change.stopped_s == pytest.approx(
        reshape_cost(served, large.plan, TIMES).seconds
    )
    timings = result.measurement.timings
    assert [t.output_tokens for t in timings] == [a.output_tokens for a in workload.arrivals]
    energy = energy_of(served, result)
    power = served.hardware.device.power
    assert 8 * power.idle_w < energy.mean_w < 8 * power.compute_bound_w
    # Four devices were nobody's until the ranks of the larger plan took them.
    assert energy.unused_joules == pytest.approx(4 * change.stopped_s * power.idle_w)
