"""Energy of a run: busy seconds by kind, idle ranks and unused devices apart."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from engine.spec.plan import ParallelPlan
from tuner.described.energy import BusyTime, EnergyEstimate, estimate_energy
from tuner.spec.errors import TunerError


@dataclass(frozen=True)
class Watts:
    idle_w: float = 100.0
    memory_bound_w: float = 300.0
    compute_bound_w: float = 700.0


def energy(*spells: BusyTime, num_devices: int = 8, output_tokens: int = 100) -> EnergyEstimate:
    return estimate_energy(
        spells, power=Watts(), num_devices=num_devices, output_tokens=output_tokens
    )


def busy(plan: ParallelPlan, wall_s: float, prefill_s: float, decode_s: float) -> BusyTime:
    return BusyTime(plan=plan, wall_s=wall_s, prefill_s=prefill_s, decode_s=decode_s)


def test_every_rank_of_a_stage_draws_its_kinds_watts_and_idles_for_the_rest() -> None:
    found = energy(busy(ParallelPlan(tp=4), 10.0, 2.0, 5.0), num_devices=4)
    assert found.prefill_joules == 4 * 2 * 700
    assert found.decode_joules == 4 * 5 * 300
    assert found.idle_joules == 4 * 3 * 100
    assert found.unused_joules == 0
    assert found.joules == 4 * (1400 + 1500 + 300)
    assert found.mean_w == pytest.approx(found.joules / 10)
    assert found.joules_per_output_token == pytest.approx(found.joules / 100)
    assert found.utilization == pytest.approx(0.7)


def test_devices_without_a_rank_are_counted_apart() -> None:
    found = energy(busy(ParallelPlan(tp=2), 10.0, 0.0, 10.0), num_devices=8)
    assert found.unused_joules == 6 * 10 * 100
    assert found.idle_joules == 0
    assert found.utilization == pytest.approx(1.0)


def test_stages_and_replicas_are_summed_by_the_busy_time_already() -> None:
    # Two stages of two ranks, each busy 4 of 10 s.
    found = energy(busy(ParallelPlan(pp=2, tp=2), 10.0, 0.0, 8.0), num_devices=4)
    assert found.decode_joules == 2 * 8 * 300
    assert found.utilization == pytest.approx(0.4)


def test_spells_of_two_plans_add_up() -> None:
    first, second = (
        busy(ParallelPlan(tp=2), 10.0, 1.0, 2.0),
        busy(ParallelPlan(tp=8), 5.0, 1.0, 3.0),
    )
    both, one, two = energy(first, second), energy(first), energy(second)
    assert both.joules == pytest.approx(one.joules + two.joules)
    assert both.wall_s == 15.0


def test_no_output_has_no_energy_per_token() -> None:
    found = energy(busy(ParallelPlan(), 1.0, 0.0, 0.0), output_tokens=0)
    assert found.joules_per_output_token is None
    assert found.to_json()["is_estimate"] is True


def test_more_ranks_than_devices_and_more_busy_than_wall_are_refused() -> None:
    with pytest.raises(TunerError, match="more ranks than the 2 devices"):
        energy(busy(ParallelPlan(tp=4), 1.0, 0.0, 0.0), num_devices=2)
    with pytest.raises(TunerError, match="busy longer"):
        busy(ParallelPlan(tp=4), 1.0, 0.8, 0.8)
    with pytest.raises(TunerError, match="below 0"):
        busy(ParallelPlan(), 1.0, -0.1, 0.5)
