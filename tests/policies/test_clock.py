"""A clock that was set back: what was seconds ago is so still."""

from __future__ import annotations

from policies.capacity_state import CapacityMemory
from policies.controller import ControlMemory
from policies.drift import DriftMemory
from policies.rollout import Arm, Canary, Slice
from policies.shedding import SheddingMemory
from policies.surge import SurgeMemory

NOW_S, BY_S = 10_000.0, 3600.0


def capacity_memory(now_s: float) -> CapacityMemory:
    """Of a loop that decided just now, and has a time to come to look at."""
    return CapacityMemory(
        changes_s=(now_s - 300.0, now_s - 20.0),
        enough_since_s=(None, now_s - 60.0),
        look_s=now_s + 40.0,
        overloaded_s=now_s - 50.0,
        decided_s=now_s,
        beyond_s=now_s - 70.0,
        flooded_s=None,
        shedding=SheddingMemory(calm_since_s=now_s - 5.0, troubled_s=now_s - 90.0),
        surge=SurgeMemory(read_s=now_s - 1.0, alarmed_s=now_s - 9.0),
    )


def test_every_time_of_the_slow_loop_goes_back_with_the_clock() -> None:
    assert capacity_memory(NOW_S + BY_S).as_of(NOW_S) == capacity_memory(NOW_S)


def test_a_clock_that_goes_on_changes_nothing() -> None:
    memory = capacity_memory(NOW_S)
    assert memory.as_of(NOW_S) is memory
    assert memory.as_of(NOW_S + BY_S) is memory
    assert CapacityMemory().as_of(NOW_S) == CapacityMemory()


def test_a_cool_down_and_a_reading_begin_now_and_not_in_an_hour() -> None:
    assert ControlMemory(changed_s=NOW_S + BY_S).as_of(NOW_S).changed_s == NOW_S
    assert ControlMemory(changed_s=NOW_S - 3.0).as_of(NOW_S).changed_s == NOW_S - 3.0
    drift = DriftMemory(read_s=NOW_S + BY_S, alarmed_s=NOW_S + BY_S - 30.0).as_of(NOW_S)
    assert (drift.read_s, drift.alarmed_s) == (NOW_S, NOW_S - 30.0)


def canary(now_s: float) -> Canary:
    """Of a candidate that has served for 20 s."""
    slices = (
        Slice(
            number=0, arm=Arm.CONTROL, asked_s=now_s - 50, began_s=now_s - 50, ended_s=now_s - 20
        ),
        Slice(number=1, arm=Arm.CANDIDATE, asked_s=now_s - 20),
    )
    return Canary(began_s=now_s - 50, slices=slices, seen_s=now_s)


def test_a_candidate_stays_as_long_exposed_as_it_was() -> None:
    moved = canary(NOW_S + BY_S).as_of(NOW_S)
    assert moved == canary(NOW_S)
    assert moved.exposed_until(NOW_S) == 20.0
