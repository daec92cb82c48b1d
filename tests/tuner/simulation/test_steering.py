"""Who steers a simulated run: planned changes, and the live controller on the run's own windows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from engine.policy.document import KnobClass
from engine.spec.errors import PolicyError
from engine.spec.modes import SHIFT, ModePin
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from policies.controller import Action, ControlLimits, Reason
from policies.points import Estimate
from policies.sla import Sla
from tests.tuner.simulation.steered import BUSY, CALM, ENVELOPE, FakeRun, schedule
from tuner.simulation.steering import PlannedChanges, SettingsChange
from tuner.simulation.steering_controller import ControllerSteering
from tuner.spec.errors import TunerError

SLA = Sla.parse("p95_ttft_ms<=200,attainment>=0.9")
TWO_BANDS = schedule((0.0, 10.0, CALM), (10.0, math.inf, BUSY))


def change(old: Settings, new: Settings, cost_s: float = 7.0) -> SettingsChange | None:
    return SettingsChange.between(old, new, envelope=ENVELOPE, reshape_s=lambda plan: cost_s)


# -- changes ---------------------------------------------------------------------------------------


def test_equal_settings_are_no_change() -> None:
    assert change(CALM, replace(CALM)) is None


def test_caps_inside_the_envelope_are_hot_and_cost_nothing() -> None:
    found = change(CALM, BUSY)
    assert found is not None
    assert (found.knob_class, found.cost_s) == (KnobClass.HOT, 0.0)


def test_fewer_sequences_than_before_drain() -> None:
    found = change(BUSY, CALM)
    assert found is not None
    assert (found.knob_class, found.cost_s) == (KnobClass.DRAIN, 0.0)


def test_another_plan_is_a_reshape_with_the_cost_of_its_ranks() -> None:
    found = change(CALM, replace(BUSY, plan=ParallelPlan(tp=4)))
    assert found is not None
    assert (found.knob_class, found.cost_s) == (KnobClass.RESHAPE, 7.0)
    assert found.classes["caps.max_num_seqs"] is KnobClass.HOT


def test_what_a_live_engine_refuses_is_refused_here() -> None:
    with pytest.raises(PolicyError, match="above the 256"):
        change(CALM, replace(CALM, caps=Caps(max_num_seqs=512)))
    with pytest.raises(PolicyError, match="needs a plan with Shift"):
        change(CALM, replace(CALM, pin=ModePin(SHIFT)))


# -- planned changes -------------------------------------------------------------------------------


def test_planned_changes_come_at_their_times() -> None:
    steering = PlannedChanges([(3.0, BUSY), (9.5, CALM)])
    run = FakeRun(rate_rps=lambda s: 5.0)
    run.steer(steering, 60.0)
    assert [(at_s, found.settings) for at_s, found in run.changes] == [(3.0, BUSY), (9.5, CALM)]


def test_a_change_that_comes_while_ranks_are_away_waits_for_them() -> None:
    steering = PlannedChanges([(3.0, BUSY)])
    run = FakeRun(rate_rps=lambda s: 5.0, is_reshaping=True)
    turn = steering.ask(3.0, run)
    assert turn.change is None
    run.is_reshaping = False
    later = steering.ask(turn.next_s, run).change
    assert later is not None
    assert later.settings == BUSY


def test_without_changes_nobody_asks() -> None:
    assert PlannedChanges([]).first_s() == math.inf


@pytest.mark.parametrize("times", [(3.0, 3.0), (5.0, 3.0), (-1.0, 2.0), (1.0, math.inf)])
def test_times_that_do_not_rise_are_refused(times: tuple[float, float]) -> None:
    with pytest.raises(TunerError, match="must rise"):
        PlannedChanges([(at_s, CALM) for at_s in times])


# -- the controller --------------------------------------------------------------------------------


def test_the_controller_follows_a_load_step_and_then_holds() -> None:
    steering = ControllerSteering(schedule=TWO_BANDS, sla=SLA)
    run = FakeRun(rate_rps=lambda s: 3.0 if s < 60 else 30.0)
    run.steer(steering, 600.0)
    assert [found.settings for _, found in run.changes] == [BUSY]
    assert 60 < run.changes[0][0] <= 75
    assert steering.moves[0].decision.reason is Reason.LOAD_UP


def test_it_goes_back_only_after_its_cool_down() -> None:
    steering = ControllerSteering(schedule=TWO_BANDS, sla=SLA)
    run = FakeRun(rate_rps=lambda s: 30.0 if 60 <= s < 90 else 3.0)
    run.steer(steering, 900.0)
    (up_s, _), (down_s, back) = run.changes
    assert back.settings == CALM
    assert down_s - up_s >= ControlLimits().cool_down_down_s


@pytest.mark.parametrize("rate", [2.0, 9.7, 10.3, 15.0])
def test_a_constant_load_never_makes_it_swing(rate: float) -> None:
    steering = ControllerSteering(schedule=TWO_BANDS, sla=SLA)
    run = FakeRun(rate_rps=lambda s: rate)
    run.steer(steering, 900.0)
    assert len(run.changes) <= 1


def test_windows_that_miss_the_sla_move_to_the_settings_of_more_load() -> None:
    steering = ControllerSteering(schedule=TWO_BANDS, sla=SLA)
    slow = {CALM: 30.0, BUSY: 0.5}  # the first token comes after a twentieth of it
    run = FakeRun(rate_rps=lambda s: 5.0, latency_s=lambda settings, rate: slow[settings])
    run.steer(steering, 300.0)
    assert [found.settings for _, found in run.changes] == [BUSY]
    assert steering.moves[0].decision.reason is Reason.SLA_MISSED


def test_an_sla_that_no_request_alone_meets_is_said_to_be_so_and_nothing_moves() -> None:
    alone = {"p50_ttft_ms": Estimate(value=300.0, low=250.0, high=350.0)}
    steering = ControllerSteering(schedule=replace(TWO_BANDS, alone=alone), sla=SLA)
    run = FakeRun(rate_rps=lambda s: 5.0, latency_s=lambda settings, rate: 6.0)
    run.steer(steering, 300.0)
    assert not run.changes
    last = steering.decisions[-1].decision
    assert (last.action, last.reason) == (Action.RAISE_CONDITION, Reason.SLA_INFEASIBLE)


def test_another_plan_than_the_schedules_is_left_alone() -> None:
    steering = ControllerSteering(schedule=TWO_BANDS, sla=SLA)
    run = FakeRun(rate_rps=lambda s: 30.0, settings=replace(CALM, plan=ParallelPlan(tp=4)))
    run.steer(steering, 60.0)
    assert not run.changes
    assert not steering.decisions


def test_nothing_is_decided_while_ranks_are_away() -> None:
    steering = ControllerSteering(schedule=TWO_BANDS, sla=SLA)
    run = FakeRun(rate_rps=lambda s: 30.0, is_reshaping=True)
    run.steer(steering, 60.0)
    assert not steering.decisions


def test_a_second_run_starts_afresh_and_decides_the_same() -> None:
    steering = ControllerSteering(schedule=TWO_BANDS, sla=SLA)
    answers = []
    for _ in range(2):
        run = FakeRun(rate_rps=lambda s: 3.0 if s < 60 else 30.0)
        run.steer(steering, 200.0)
        answers.append((run.changes, steering.decisions))
    assert answers[0] == answers[1]


def test_the_observed_rate_counts_requests_that_arrived_and_have_not_ended() -> None:
    steering = ControllerSteering(schedule=TWO_BANDS, sla=SLA)
    run = FakeRun(rate_rps=lambda s: 4.0, latency_s=lambda settings, rate: 1e6)
    run.steer(steering, 30.0)
    seen = steering.decisions[-1].observation
    assert seen is not None
    assert seen.load.rate_rps == pytest.approx(4.0, rel=0.05)
    assert seen.load.mean_output_tokens is None


def test_a_window_shorter_than_the_interval_is_refused() -> None:
    with pytest.raises(TunerError, match="no longer than the window"):
        ControllerSteering(schedule=TWO_BANDS, sla=SLA, interval_s=10.0, window_s=5.0)
