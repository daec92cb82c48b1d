"""Settings that change in the middle of a simulated run, and what the changes cost."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from engine.policy.document import KnobClass
from engine.spec.measurement import Outcome
from engine.spec.modes import BASE, ENDS, SHIFT, ModePin
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from policies.attainment import judge
from policies.controller import Reason
from policies.sla import Sla
from tests.tuner.simulation.steered import schedule
from tests.tuner.worlds import SMALL, LinearTimer, closed_loop, open_loop
from tuner.described.energy import busy_times, estimate_energy
from tuner.hardware.power import PowerSpec
from tuner.simulation.simulate import (
    Ranks,
    SimulatedEngine,
    SimulationResult,
    ranks_of_one,
    simulate,
)
from tuner.simulation.steering import PlannedChanges, Steering
from tuner.simulation.steering_controller import ControllerSteering
from tuner.spec.errors import TunerError
from tuner.spec.look_ahead import LookAhead
from tuner.workload.parse import parse_workload
from tuner.workload.workload import Workload

START = Settings(
    plan=ParallelPlan(sp=2, shift=True),
    threshold_tokens=64,
    caps=Caps(max_num_seqs=16, max_num_batched_tokens=256),
)
OTHER_PLAN = replace(START, plan=ParallelPlan(tp=4))
HELD_PLAN = replace(START, plan=ParallelPlan(tp=2))
AWAY_S = 3.0


def run(
    workload: Workload,
    steering: Steering | None,
    *,
    start: Settings = START,
    num_kv_blocks: int = 2000,
    timer: LinearTimer | None = None,
    max_model_len: int = 1024,
    later_kv_blocks: int | None = None,
    look_ahead: LookAhead = LookAhead.NONE,
) -> SimulationResult:
    """``later_kv_blocks``: what any other plan has; by default as many."""
    timer = timer or LinearTimer()

    def ranks_of(plan: ParallelPlan) -> Ranks:
        later = num_kv_blocks if plan == start.plan else later_kv_blocks or num_kv_blocks
        return Ranks(timer=replace(timer, stages=plan.pp), num_kv_blocks=later)

    engine = SimulatedEngine(
        model=SMALL, ranks_of=ranks_of, max_model_len=max_model_len, look_ahead=look_ahead
    )
    return simulate(engine, start, workload, seed=3, steering=steering)


def planned(*changes: tuple[float, Settings], away_s: float = AWAY_S) -> PlannedChanges:
    return PlannedChanges(changes, reshape_s=lambda plan: away_s)


def assert_complete(result: SimulationResult, workload: Workload) -> None:
    """No request is lost, each has exactly its tokens, one after the other."""
    timings = result.measurement.timings
    assert [t.outcome for t in timings] == [Outcome.COMPLETED] * len(workload)
    assert [t.output_tokens for t in timings] == [a.output_tokens for a in workload.arrivals]
    assert all(a < b for t in timings for a, b in pairwise(t.token_s))


def prefilled(result: SimulationResult) -> int:
    return sum(s.shape.num_prefill_tokens * s.num_steps for s in result.segments)


def test_a_steering_that_changes_nothing_changes_nothing() -> None:
    workload = open_loop(requests=60, gap_s=0.03)
    alone = run(workload, None)
    steered = run(workload, planned((0.5, START), (1.0, replace(START))))
    for one, other in zip(steered.measurement.timings, alone.measurement.timings, strict=True):
        assert one.token_s == pytest.approx(other.token_s, abs=1e-9)
    assert steered.counts.steps == alone.counts.steps
    assert not steered.changes


def test_a_hot_change_is_obeyed_by_the_next_step() -> None:
    workload = open_loop(requests=20, gap_s=0.05, output_tokens=60)
    result = run(workload, planned((1.0, replace(START, pin=ModePin(BASE)))))
    before = [s for s in result.segments if s.start_s < 1.0 - 0.011]
    after = [s for s in result.segments if s.start_s > 1.0 + 0.011]
    assert {s.shape.mode for s in before} == set(ENDS)
    assert {s.shape.mode for s in after} == {BASE}
    (change,) = result.changes
    assert (change.at_s, change.in_force_s) == (1.0, 1.0)
    assert change.change.knob_class is KnobClass.HOT


def test_a_plan_on_the_ladder_is_taken_up_by_the_next_step() -> None:
    """The ranks stay; steps are named as on the plan whose shards they hold."""
    workload = open_loop(requests=20, gap_s=0.05, output_tokens=60)
    result = run(workload, planned((1.0, HELD_PLAN), (1.5, OTHER_PLAN)))
    assert_complete(result, workload)
    held, other = result.changes
    assert held.change.classes == {"plan": KnobClass.HOT}
    assert other.change.knob_class is KnobClass.RESHAPE
    assert [spell.plan for spell in result.spells] == [START.plan, OTHER_PLAN.plan]
    between = [s for s in result.segments if 1.011 < s.start_s < other.stopped_s]
    assert {s.shape.mode for s in between} == {SHIFT}


def test_a_hot_change_reaches_into_a_quiet_stretch() -> None:
    """Nothing happens for minutes but decode steps, and still the change comes in time."""
    workload = open_loop(requests=1, gap_s=0.0, output_tokens=900)
    result = run(workload, planned((4.0, replace(START, pin=ModePin(BASE)))))
    first_base = next(
        s.start_s for s in result.segments if s.shape.mode == BASE and s.start_s > 1.0
    )
    assert 4.0 <= first_base < 4.03


def test_lower_caps_drain_as_requests_finish() -> None:
    workload = open_loop(requests=16, gap_s=0.0, output_tokens=100)
    waiting = open_loop(requests=40, gap_s=0.0, output_tokens=30)
    both = replace(workload, arrivals=workload.arrivals + waiting.arrivals)
    lower = replace(START, caps=replace(START.caps, max_num_seqs=4))
    result = run(both, planned((1.0, lower)))
    assert_complete(result, both)
    assert result.counts.preemptions == 0
    assert result.changes[0].change.knob_class is KnobClass.DRAIN
    sizes = [s.shape.num_seqs for s in result.segments if s.start_s > 1.02]
    assert sizes[0] > 12
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] <= 4
    assert 4 in sizes


@pytest.mark.parametrize("look_ahead", list(LookAhead))
def test_a_reshape_costs_its_seconds_loses_nothing_and_computes_again(
    look_ahead: LookAhead,
) -> None:
    workload = open_loop(requests=40, gap_s=0.05, output_tokens=60)
    result, alone = (
        run(workload, steering, look_ahead=look_ahead)
        for steering in (planned((1.0, OTHER_PLAN)), None)
    )
    assert_complete(result, workload)
    (change,) = result.changes
    assert change.change.knob_class is KnobClass.RESHAPE
    assert change.num_carried > 0
    assert 1.0 <= change.stopped_s < 1.1
    assert change.in_force_s == pytest.approx(change.stopped_s + AWAY_S)
    away = (change.stopped_s - 1e-9, change.in_force_s - 1e-9)
    assert not [s for s in result.segments if away[0] < s.start_s < away[1]]
    assert not [e for s in result.segments for e in s.end_s if away[0] + 2e-9 < e < away[1]]
    # Prompts and the tokens so far of the carried requests are computed a second time.
    assert prefilled(result) > prefilled(alone) + change.num_carried * 50
    assert result.measurement.window_s > alone.measurement.window_s


def test_requests_that_come_while_ranks_are_away_wait_at_the_door() -> None:
    workload = open_loop(requests=60, gap_s=0.1)
    result = run(workload, planned((1.0, OTHER_PLAN)))
    assert_complete(result, workload)
    (change,) = result.changes
    met = [
        t
        for t in result.measurement.timings
        if change.stopped_s < t.scheduled_s < change.in_force_s
    ]
    assert len(met) >= 25
    assert all(t.token_s[0] > change.in_force_s for t in met)


def test_a_full_door_refuses() -> None:
    caps = replace(START.caps, max_queue=5)
    start = replace(START, caps=caps)
    workload = open_loop(requests=60, gap_s=0.1)
    result = run(workload, planned((1.0, replace(start, plan=OTHER_PLAN.plan))), start=start)
    (change,) = result.changes
    met = [
        t.outcome
        for t in result.measurement.timings
        if change.at_s <= t.scheduled_s < change.in_force_s
    ]
    assert met == [Outcome.COMPLETED] * 5 + [Outcome.ERRORED] * (len(met) - 5)
    assert len(met) >= 25
    assert run(workload, None, start=start).measurement.count(Outcome.ERRORED) == 0


def test_a_reshape_may_change_the_number_of_replicas_and_stages() -> None:
    workload = open_loop(requests=80, gap_s=0.02, output_tokens=40)
    for plan in (ParallelPlan(dp=2), ParallelPlan(pp=2), ParallelPlan(dp=2, pp=2)):
        result = run(workload, planned((0.7, replace(START, plan=plan))))
        assert_complete(result, workload)
        after = {s.replica for s in result.segments if s.start_s > result.changes[0].in_force_s}
        assert after == set(range(plan.dp))


def test_a_plan_that_cannot_hold_a_request_in_progress_is_refused_and_the_run_goes_on() -> None:
    workload = open_loop(requests=4, gap_s=0.0, input_tokens=600, output_tokens=100)
    result = run(workload, planned((0.5, OTHER_PLAN)), later_kv_blocks=20)
    (change,) = result.changes
    assert change.is_refused
    assert [spell.plan for spell in result.spells] == [START.plan]
    assert result.measurement.count(Outcome.COMPLETED) == 4


def test_held_requests_that_do_not_fit_the_new_plan_are_refused_and_the_rest_goes_on() -> None:
    """In a closed loop each refusal sends the next request."""
    arrivals = closed_loop(requests=40, concurrency=4, input_tokens=50).arrivals
    long = [
        replace(a, input_tokens=700 if i % 5 == 3 else a.input_tokens)
        for i, a in enumerate(arrivals)
    ]
    workload = replace(closed_loop(requests=40, concurrency=4), arrivals=tuple(long))
    result = run(workload, planned((0.0, OTHER_PLAN)), num_kv_blocks=40, max_model_len=640)
    outcomes = [t.outcome for t in result.measurement.timings]
    assert outcomes == [Outcome.ERRORED if i % 5 == 3 else Outcome.COMPLETED for i in range(40)]


def test_another_plan_needs_its_step_times() -> None:
    ranks = Ranks(timer=LinearTimer(), num_kv_blocks=2000)
    engine = SimulatedEngine(model=SMALL, ranks_of=ranks_of_one(START.plan, ranks))
    workload = open_loop(requests=20, gap_s=0.1)
    with pytest.raises(TunerError, match="give ranks_of"):
        simulate(engine, START, workload, steering=planned((0.5, OTHER_PLAN)))


def test_a_closed_loop_goes_on_after_a_reshape() -> None:
    workload = closed_loop(requests=60, concurrency=6)
    assert_complete(run(workload, planned((0.5, OTHER_PLAN), (6.0, START))), workload)


plans = st.sampled_from([ParallelPlan(), ParallelPlan(dp=2), ParallelPlan(pp=2), START.plan])
changes = st.lists(
    st.tuples(st.floats(0.0, 8.0), plans, st.integers(1, 40), st.sampled_from([32, 256, 1024])),
    max_size=6,
    unique_by=lambda change: change[0],
)


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    found=changes,
    away_s=st.floats(0.0, 2.0),
    concurrency=st.integers(0, 8),
    look_ahead=st.sampled_from(LookAhead),
)
def test_whatever_changes_no_request_is_lost_and_the_same_comes_out_again(
    found: list[tuple[float, ParallelPlan, int, int]],
    away_s: float,
    concurrency: int,
    look_ahead: LookAhead,
) -> None:
    steering = planned(
        *(
            (at_s, Settings(plan=p, caps=Caps(max_num_seqs=n, max_num_batched_tokens=t)))
            for at_s, p, n, t in sorted(found, key=lambda change: change[0])
        ),
        away_s=away_s,
    )
    if concurrency:
        workload = closed_loop(requests=40, concurrency=concurrency)
    else:
        workload = open_loop(requests=40, gap_s=0.1, output_tokens=30)
    result = run(workload, steering, num_kv_blocks=90, look_ahead=look_ahead)
    assert_complete(result, workload)
    assert run(workload, steering, num_kv_blocks=90, look_ahead=look_ahead) == result
    spells = result.spells
    assert all(a.to_s == b.from_s for a, b in pairwise(spells))
    assert all(time.busy_rank_s >= 0 for time in busy_times(result))


# -- the controller --------------------------------------------------------------------------------

CALM = replace(START, caps=Caps(max_num_seqs=4, max_num_batched_tokens=64), threshold_tokens=16)
BUSY = replace(START, caps=Caps(max_num_seqs=64, max_num_batched_tokens=1024), threshold_tokens=64)
SLA = Sla.parse("p95_ttft_ms<=1000,attainment>=0.9")
BANDS = schedule((0.0, 7.0, CALM), (7.0, math.inf, BUSY))
LOAD_STEP = "step:rate=3,to=20,at=60,seconds=240,input=100,output=20"


def test_the_controller_follows_a_load_step_and_is_better_than_holding_still() -> None:
    workload = parse_workload(LOAD_STEP, seed=1)
    steering = ControllerSteering(schedule=BANDS, sla=SLA)
    steered, still = run(workload, steering, start=CALM), run(workload, None, start=CALM)
    assert [c.change.settings for c in steered.changes] == [BUSY]
    assert 60 < steered.changes[0].at_s <= 80
    attainment = [judge(SLA, r.measurement).attainment or 0.0 for r in (steered, still)]
    assert attainment[0] > attainment[1] + 0.3
    assert attainment[0] > 0.9


@pytest.mark.parametrize("rate", [3.0, 6.7, 7.3])
def test_under_a_constant_load_the_controller_does_not_swing(rate: float) -> None:
    workload = parse_workload(f"poisson:rate={rate},seconds=400,input=100,output=20", seed=2)
    steering = ControllerSteering(schedule=BANDS, sla=SLA)
    result = run(workload, steering, start=CALM)
    # Noise may carry a rate beside an edge over it once and, after the cool-down, back.
    assert len(result.changes) <= 2
    assert_complete(result, workload)


def test_the_controller_sees_the_rate_that_comes() -> None:
    workload = parse_workload("poisson:rate=12,seconds=120,input=100,output=20", seed=4)
    steering = ControllerSteering(schedule=BANDS, sla=SLA)
    run(workload, steering, start=BUSY)
    rates = [d.observation.load.rate_rps for d in steering.decisions if d.observation is not None]
    inside = rates[3:-3]
    assert sum(inside) / len(inside) == pytest.approx(12.0, rel=0.15)
    assert all(d.decision.reason is not Reason.NO_DATA for d in steering.decisions)


# -- energy ----------------------------------------------------------------------------------------


def test_the_energy_of_a_run_adds_up_over_a_change_of_plan() -> None:
    watts = PowerSpec(idle_w=100.0, memory_bound_w=300.0, compute_bound_w=600.0, source="test")
    workload = open_loop(requests=40, gap_s=0.05, output_tokens=60)
    result = run(workload, planned((1.0, replace(START, plan=ParallelPlan(tp=4)))))
    spells = busy_times(result)
    assert [s.plan.world_size for s in spells] == [2, 4]
    found = estimate_energy(spells, power=watts, num_devices=8, output_tokens=2400)
    assert 8 * 100 < found.mean_w < 8 * 600
    assert found.unused_joules > 0
    assert found.wall_s == pytest.approx(result.spells[-1].to_s)
    still = run(workload, None)
    least = estimate_energy(busy_times(still), power=watts, num_devices=8, output_tokens=2400)
    assert found.joules > least.joules
