"""Another plan in the middle of a simulated run, while ranks serve."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from engine.spec.measurement import Outcome
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from engine.transition.planning import Way
from tests.tuner.worlds import SMALL, LinearTimer, open_loop
from tuner.simulation.simulate import Ranks, SimulatedEngine, SimulationResult, simulate
from tuner.simulation.steering import PlannedChanges
from tuner.workload.workload import Workload

START_S = 3.0
CAPS = Caps(max_num_seqs=16, max_num_batched_tokens=256)


def plan(**degrees: int) -> Settings:
    return Settings(plan=ParallelPlan(**degrees), caps=CAPS)


def run(
    workload: Workload, start: Settings, *changes: tuple[float, Settings], devices: int = 4
) -> SimulationResult:
    engine = SimulatedEngine(
        model=SMALL,
        ranks_of=lambda plan: Ranks(
            timer=replace(LinearTimer(), stages=plan.pp), num_kv_blocks=2000
        ),
        max_model_len=4096,
        devices=devices,
    )
    steering = PlannedChanges(changes, reshape_s=lambda plan: START_S)
    return simulate(engine, start, workload, seed=3, steering=steering)


def assert_complete(result: SimulationResult, workload: Workload) -> None:
    timings = result.measurement.timings
    assert [t.outcome for t in timings] == [Outcome.COMPLETED] * len(workload)
    assert [t.output_tokens for t in timings] == [a.output_tokens for a in workload.arrivals]
    assert all(list(t.token_s) == sorted(t.token_s) for t in timings)


def longest_silence_s(result: SimulationResult) -> float:
    """Between two steps of any replica."""
    ends = sorted(end for segment in result.segments for end in segment.end_s)
    return max(b - a for a, b in pairwise(ends))


def test_replicas_join_and_leave_while_the_others_serve() -> None:
    workload = open_loop(requests=200, gap_s=0.1, output_tokens=40)
    result = run(workload, plan(), (2.0, plan(dp=3)), (9.0, plan(dp=1)))
    assert_complete(result, workload)
    added, removed = result.changes
    assert (added.way, removed.way) == (Way.ADD, Way.REMOVE)
    assert added.in_force_s == pytest.approx(2.0 + START_S)
    assert longest_silence_s(result) < START_S / 2
    first = {s.replica: s.start_s for s in reversed(result.segments)}
    assert len(first) == 3
    assert all(first[number] >= added.in_force_s for number in (1, 2))
    late = {s.replica for s in result.segments if s.start_s > removed.in_force_s + 2.0}
    assert len(late) == 1


def test_device_seconds_count_starts_and_draining() -> None:
    workload = open_loop(requests=100, gap_s=0.1, output_tokens=10)
    result = run(workload, plan(), (2.0, plan(dp=2)), (7.0, plan(dp=1)))
    end_s = max(end for segment in result.segments for end in segment.end_s)
    first, second = sorted(result.device_spells, key=lambda spell: spell.from_s)
    assert (first.from_s, first.to_s) == (0.0, pytest.approx(end_s))
    assert second.from_s == 2.0
    assert 7.0 <= second.to_s < 8.0
    assert result.device_seconds(5.0) == pytest.approx(5.0 + 3.0)


def test_another_kind_of_replica_takes_over_on_free_devices() -> None:
    workload = open_loop(requests=150, gap_s=0.05, output_tokens=40)
    result = run(workload, plan(tp=2), (2.0, plan(pp=2)))
    assert_complete(result, workload)
    (change,) = result.changes
    assert change.way is Way.BLUE_GREEN
    assert change.num_carried == 0
    assert longest_silence_s(result) < START_S / 2
    assert [spell.plan for spell in result.spells] == [plan(tp=2).plan, plan(pp=2).plan]


def test_what_does_not_finish_in_time_goes_on_elsewhere() -> None:
    """Requests of more tokens than 30 s of draining allow."""
    workload = open_loop(requests=8, gap_s=0.1, output_tokens=3500)
    result = run(workload, plan(dp=2), (2.0, plan(dp=1)))
    assert_complete(result, workload)
    (change,) = result.changes
    assert change.way is Way.REMOVE
    assert 0 < change.num_carried < 8


def test_where_devices_do_not_allow_it_all_stop() -> None:
    workload = open_loop(requests=60, gap_s=0.1, output_tokens=40)
    result = run(workload, plan(tp=4), (2.0, plan(pp=4)))
    assert_complete(result, workload)
    assert result.changes[0].way is Way.STOP_AND_CARRY
    assert longest_silence_s(result) >= START_S


PLANS = (plan(), plan(dp=2), plan(dp=4), plan(tp=2), plan(pp=2), plan(dp=2, tp=2), plan(tp=4))


@given(
    st.lists(st.tuples(st.floats(0.5, 5.0), st.sampled_from(PLANS)), min_size=1, max_size=5),
    st.sampled_from(PLANS),
    st.integers(1, 90),
)
@hypothesis_settings(max_examples=10, deadline=None)
def test_no_change_loses_a_request(
    gaps: list[tuple[float, Settings]], start: Settings, output_tokens: int
) -> None:
    workload = open_loop(requests=60, gap_s=0.2, output_tokens=output_tokens)
    at_s, changes = 0.0, []
    for gap_s, settings in gaps:
        at_s += gap_s
        changes.append((at_s, settings))
    result = run(workload, start, *changes)
    assert_complete(result, workload)
    assert result.counts.num_steps > 0
    assert all(0 <= spell.from_s <= spell.to_s for spell in result.device_spells)
