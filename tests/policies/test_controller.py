"""The fast loop: follows the load, never swings under a constant one, holds without data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from policies.controller import (
    Action,
    BandRejection,
    ControlLimits,
    ControlMemory,
    ControlState,
    Decision,
    LoadWindow,
    OnDrift,
    Reason,
    decide,
)
from policies.errors import PolicyInputError
from policies.schedule import LoadBand, Schedule

WINDOW_S, HOUR_S = 5.0, 3600.0
PLAN = ParallelPlan(sp=2, shift=True)
# Loads of these tests are exact: nothing in them is luck.
eager = ControlLimits(cool_down_down_s=0.0, chance_up=0.5, chance_down=0.5)


def band(
    low: float, high: float, *, mix: tuple[float, float] = (500, 50), seqs: int = 8
) -> LoadBand:
    return LoadBand(
        rate_rps_low=low,
        rate_rps_high=high,
        mean_input_tokens=mix[0],
        mean_output_tokens=mix[1],
        settings=Settings(plan=PLAN, threshold_tokens=256, caps=Caps(max_num_seqs=seqs)),
        headroom=0.2,
    )


SCHEDULE = Schedule(
    bands=(
        band(0, 2),
        band(2, 6, seqs=16),
        band(6, 20, seqs=32),
        band(0, 10, mix=(50, 900), seqs=64),
    ),
)


def window(
    rate: float, *, is_met: bool | None = None, mix: tuple[float, float] = (500, 50)
) -> LoadWindow:
    return LoadWindow(
        window_s=WINDOW_S,
        rate_rps=rate,
        mean_input_tokens=mix[0],
        mean_output_tokens=mix[1],
        num_requests=100,
        is_sla_met=is_met,
    )


def play(
    windows: Sequence[LoadWindow | None],
    *,
    limits: ControlLimits | None = None,
    memory: ControlMemory | None = None,
    **extra: object,
) -> list[Decision]:
    """Decisions over consecutive windows, each fed the memory of the one before."""
    state = ControlState(
        schedule=SCHEDULE,
        now_s=0.0,
        load=None,
        limits=limits or ControlLimits(),
        memory=memory or ControlMemory(),
        **extra,
    )
    decisions = []
    for i, load in enumerate(windows):
        decision = decide(replace(state, now_s=i * WINDOW_S, load=load))
        decisions.append(decision)
        state = replace(state, memory=decision.memory)
    return decisions


def test_the_first_observation_puts_its_band_in_force() -> None:
    decision = play([window(3)])[0]
    assert decision.action is Action.MOVE
    assert decision.reason is Reason.FIRST_OBSERVATION
    assert decision.settings == SCHEDULE.bands[1].settings
    assert {(r.band_index, r.why) for r in decision.rejected} == {
        (0, BandRejection.LOAD_IS_HIGHER),
        (2, BandRejection.LOAD_IS_LOWER),
        (3, BandRejection.OTHER_MIX),
    }


def test_missing_data_is_a_state_and_never_zero_load() -> None:
    decisions = play([window(10), *[None] * 50])
    assert decisions[0].band_index == 2
    for decision in decisions[1:]:
        assert (decision.action, decision.reason) == (Action.HOLD, Reason.NO_DATA)
        assert decision.band_index == 2
        assert decision.settings == SCHEDULE.bands[2].settings
        assert {r.why for r in decision.rejected} == {BandRejection.NO_FRESH_DATA}


def test_no_data_before_the_first_observation_commands_nothing() -> None:
    assert play([None])[0].settings is None


def test_stale_data_holds_like_missing_data() -> None:
    decision = play([window(10), replace(window(0), age_s=60.0)])[-1]
    assert (decision.reason, decision.band_index) == (Reason.STALE_DATA, 2)


def test_an_observed_silence_is_a_load_of_zero() -> None:
    silence = LoadWindow(
        window_s=WINDOW_S, rate_rps=0.0, mean_input_tokens=None, mean_output_tokens=None
    )
    decisions = play([window(10), *[silence] * 80])
    assert decisions[-1].band_index == 0


def test_a_rising_load_moves_at_once_and_a_falling_one_waits_for_the_cool_down() -> None:
    up = play([window(1)] * 2 + [window(12)] * 10)
    moved = next(d for d in up[2:] if d.action is Action.MOVE)
    assert moved.reason is Reason.LOAD_UP
    assert up.index(moved) <= 4
    down = play([window(12)] * 2 + [window(1)] * 70)
    reasons = [d.reason for d in down]
    assert Reason.COOL_DOWN in reasons
    moves = [i for i, d in enumerate(down) if d.action is Action.MOVE and i]
    assert down[moves[0]].reason is Reason.LOAD_DOWN
    assert moves[0] * WINDOW_S >= 300


def test_a_load_just_over_the_edge_stays_inside_the_dead_band() -> None:
    decision = play([window(1.9)] * 3 + [window(2.1)] * 50)[-1]
    assert (decision.action, decision.reason) == (Action.HOLD, Reason.DEAD_BAND)
    assert decision.band_index == 0
    assert decision.rejected[0].why is BandRejection.DEAD_BAND


def seen(rates_rps: Sequence[float], seed: int, *, window_s: float = 15.0) -> list[LoadWindow]:
    """What is seen at every look of requests that come by luck at these rates, one for each look,
    with lengths that differ as much as exponential ones do."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(np.array(rates_rps) * WINDOW_S)
    tokens = [rng.exponential(1.0, count).sum() for count in counts]
    found = []
    for nth in range(1, len(counts) + 1):
        last = slice(max(0, nth - round(window_s / WINDOW_S)), nth)
        seconds, requests = len(counts[last]) * WINDOW_S, int(counts[last].sum())
        size = sum(tokens[last]) / requests
        found.append(
            LoadWindow(
                window_s=seconds,
                rate_rps=requests / seconds,
                mean_input_tokens=500 * size,
                mean_output_tokens=50 * size,
                num_requests=requests,
                is_sla_met=True,
            )
        )
    return found


@pytest.mark.parametrize("share", [0.95, 1.0, 1.05])
@pytest.mark.parametrize("edge_rps", [2.0, 6.0])
def test_a_load_that_wanders_about_an_edge_changes_settings_once_an_hour_at_most(
    edge_rps: float, share: float
) -> None:
    rates = [share * edge_rps] * round(HOUR_S / WINDOW_S)
    moves = [d for d in play(seen(rates, 1)) if d.action is Action.MOVE]
    assert moves[0].reason is Reason.FIRST_OBSERVATION
    assert len(moves) <= 2, [move.reason for move in moves]


def test_a_step_of_such_a_load_is_followed_in_seconds_and_a_fall_that_stays_is_too() -> None:
    calm, busy = [4.0] * 60, [12.0] * 120
    decisions = play(seen([*calm, *busy, *calm], 1))
    moves = [nth for nth, d in enumerate(decisions) if d.action is Action.MOVE]
    assert [decisions[nth].reason for nth in moves[1:]] == [Reason.LOAD_UP, Reason.LOAD_DOWN]
    assert (moves[1] - len(calm)) * WINDOW_S <= 25
    assert (moves[2] - len(calm) - len(busy)) * WINDOW_S <= 90


def test_a_load_that_misses_the_sla_past_the_dead_band_is_no_luck() -> None:
    """A few requests a second, a fifth past the edge: luck would explain that, and a miss does
    not."""
    for is_met, reason in ((True, Reason.DEAD_BAND), (False, Reason.LOAD_UP)):
        risen = play([window(1.5)] + [window(2.4, is_met=is_met)] * 8)
        assert reason in {decision.reason for decision in risen}
        assert (risen[-1].band_index == 1) is not is_met


def test_misses_inside_the_dead_band_take_the_settings_of_the_higher_load() -> None:
    missing, meeting = [window(2.1, is_met=False)] * 5, [window(2.1, is_met=True)] * 40
    decisions = play([window(1.9)] * 3 + missing + meeting)
    moves = [d.reason for d in decisions if d.action is Action.MOVE]
    assert moves == [Reason.FIRST_OBSERVATION, Reason.SLA_MISSED]
    assert decisions[-1].settings == SCHEDULE.bands[1].settings


def test_misses_inside_the_dead_band_count_in_a_row_only() -> None:
    windows = [window(2.1, is_met=bool(nth % 3)) for nth in range(60)]
    moves = [d.reason for d in play([window(1.9)] * 3 + windows) if d.action is Action.MOVE]
    assert moves == [Reason.FIRST_OBSERVATION]


CALM_BAND = ControlLimits(cool_down_down_s=0.0)
FALLEN = window(1.75)  # a little below the middle band and its dead band


def first_move(windows: Sequence[LoadWindow | None]) -> int | None:
    decisions = play([window(3.0), *windows], limits=CALM_BAND)[1:]
    return next((nth for nth, d in enumerate(decisions) if d.action is Action.MOVE), None)


def test_a_look_without_data_takes_nothing_away_and_time_not_watched_is_no_evidence() -> None:
    steady = first_move([FALLEN] * 4000)
    assert steady is not None
    with_holes = first_move([None if nth % 7 == 6 else FALLEN for nth in range(4000)])
    assert with_holes is not None
    assert steady <= with_holes <= steady + 8
    silence: list[LoadWindow | None] = [None] * 3000
    after_silence = first_move([*[FALLEN] * 20, *silence, *[FALLEN] * 4000])
    assert after_silence is not None
    assert after_silence - 20 - len(silence) >= steady - 20


def test_longer_requests_count_as_more_load() -> None:
    decision = play([window(1.5)] + [window(1.5, mix=(2500, 250))] * 20)[-1]
    assert decision.band_index == 2


def test_another_length_mix_moves_to_its_own_bands() -> None:
    decisions = play([window(3)] + [window(3, mix=(50, 900))] * 30)
    assert Reason.MIX_CHANGED in [d.reason for d in decisions]
    assert decisions[-1].band_index == 3


def test_misses_in_a_row_move_to_the_settings_of_a_higher_load_and_stay_there() -> None:
    decisions = play([window(1)] + [window(1, is_met=False)] * 5 + [window(1, is_met=True)] * 100)
    corrected = decisions[5]
    assert (corrected.action, corrected.reason) == (Action.MOVE, Reason.SLA_MISSED)
    assert corrected.band_index == 1
    assert (0, BandRejection.SLA_MISSED) in {(r.band_index, r.why) for r in corrected.rejected}
    assert decisions[-1].band_index == 1
    assert all(d.action is Action.HOLD for d in decisions[6:])


def test_new_settings_are_not_judged_by_requests_served_before_them() -> None:
    decisions = play([window(1)] + [window(1, is_met=False)] * 8)
    moves = [nth for nth, d in enumerate(decisions) if d.reason is Reason.SLA_MISSED]
    assert moves == [5], "windows of 5 s; the settings of step 5 are judged from step 8 on"


def test_a_falling_load_does_not_take_settings_away_from_a_run_that_misses() -> None:
    decisions = play([window(3)] + [window(0.1, is_met=False)] * 5, limits=eager)
    assert [d.band_index for d in decisions] == [1, 1, 1, 1, 1, 2]
    relieved = play([window(3)] + [window(0.1, is_met=True)] * 30, limits=eager)
    assert relieved[-1].band_index == 0


def test_single_misses_and_tiny_windows_change_nothing() -> None:
    mixed = [window(1, is_met=i % 3 > 0) for i in range(30)]
    assert {d.band_index for d in play([window(1), *mixed])} == {0}
    tiny = [replace(window(1, is_met=False), num_requests=3)] * 30
    assert {d.band_index for d in play([window(1), *tiny])} == {0}


def test_an_sla_no_idle_engine_meets_raises_a_condition_and_adds_nothing() -> None:
    decisions = play([window(1)] + [window(1, is_met=False)] * 50, is_feasible_when_idle=False)
    assert {d.band_index for d in decisions} == {0}
    assert (decisions[-1].action, decisions[-1].reason) == (
        Action.RAISE_CONDITION,
        Reason.SLA_INFEASIBLE,
    )


def test_requests_shorter_than_the_schedules_may_meet_what_its_own_cannot() -> None:
    short = (350.0, 50.0)
    decisions = play(
        [window(1, mix=short)] + [window(1, is_met=False, mix=short)] * 5,
        is_feasible_when_idle=False,
    )
    assert decisions[-1].reason is Reason.SLA_MISSED
    assert decisions[-1].band_index == 1


def test_an_sla_that_is_met_is_never_called_infeasible() -> None:
    decisions = play([window(1)] + [window(1, is_met=True)] * 50, is_feasible_when_idle=False)
    assert {d.reason for d in decisions[1:]} == {Reason.IN_BAND}


def test_misses_in_the_top_band_raise_a_condition() -> None:
    decisions = play([window(10)] + [window(10, is_met=False)] * 5)
    assert decisions[-1].reason is Reason.SLA_MISSED_AT_TOP
    assert decisions[-1].action is Action.RAISE_CONDITION
    assert decisions[-1].band_index == 2


def test_a_load_beyond_the_schedule_keeps_the_top_band_and_says_so() -> None:
    decision = play([window(100)] * 3)[-1]
    assert (decision.action, decision.reason) == (Action.RAISE_CONDITION, Reason.BEYOND_SCHEDULE)
    assert decision.band_index == 2


@pytest.mark.parametrize(
    ("on_drift", "reason", "action"),
    [
        (OnDrift.PAUSE, Reason.DRIFT_PAUSED, Action.HOLD),
        (OnDrift.ADOPT, Reason.DRIFT_ADOPTED, Action.HOLD),
        (OnDrift.REVERT, Reason.DRIFT_REVERTED, Action.MOVE),
    ],
)
def test_a_manual_change_is_noticed_and_answered_as_told(
    on_drift: OnDrift, reason: Reason, action: Action
) -> None:
    manual = Settings(threshold_tokens=99, caps=Caps())
    memory = play([window(1)])[0].memory
    state = ControlState(
        schedule=SCHEDULE,
        now_s=60.0,
        load=window(1),
        in_force=manual,
        memory=memory,
        limits=ControlLimits(on_drift=on_drift),
    )
    decision = decide(state)
    assert (decision.reason, decision.action) == (reason, action)
    expected = SCHEDULE.bands[0].settings if on_drift is OnDrift.REVERT else manual
    assert decision.settings == expected
    # Right after a change the engine has not reported it yet: that is no drift.
    assert decide(replace(state, now_s=5.0)).reason is Reason.IN_BAND


def test_bands_with_equal_settings_are_no_change_to_the_engine() -> None:
    same = Schedule(bands=(band(0, 2), band(2, 9)))
    first = decide(ControlState(schedule=same, now_s=0, load=window(1)))
    second = decide(
        ControlState(
            schedule=same,
            now_s=5,
            load=window(8),
            memory=first.memory,
            limits=ControlLimits(ema_alpha=1.0),
        )
    )
    assert (second.action, second.reason, second.band_index) == (Action.HOLD, Reason.LOAD_UP, 1)


def test_limits_that_cannot_be_are_refused() -> None:
    with pytest.raises(PolicyInputError, match="ema_alpha=0"):
        ControlLimits(ema_alpha=0)


rates = st.floats(min_value=0, max_value=40)


@settings(deadline=None, max_examples=60)
@given(st.lists(rates, max_size=8), rates, st.sampled_from([None, True, False]))
def test_a_constant_load_settles_and_never_swings(
    before: list[float], constant: float, is_met: bool | None
) -> None:
    """Whatever came before, even without cool-down: from some turn on nothing moves."""
    history = [window(rate) for rate in before]
    decisions = play([*history, *[window(constant, is_met=is_met)] * 60], limits=eager)
    settled = [d.band_index for d in decisions[len(before) :]]
    assert len(set(settled[30:])) == 1
    visited = [a for a, b in zip(settled, [*settled[1:], -1], strict=True) if a != b]
    assert len(visited) == len(set(visited)), "a band was left and entered again"


@settings(deadline=None, max_examples=60)
@given(
    st.floats(min_value=0.5, max_value=19),
    st.lists(st.floats(min_value=0.92, max_value=1.08), min_size=40, max_size=40),
)
def test_noise_inside_the_dead_band_never_swings(rate: float, noise: list[float]) -> None:
    decisions = play([window(rate * n) for n in noise], limits=eager)
    indices = [d.band_index for d in decisions]
    changes = sum(a != b for a, b in pairwise(indices))
    assert changes <= 1


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(st.none(), rates), min_size=1, max_size=40))
def test_every_decision_holds_exactly_what_its_band_says(values: list[float | None]) -> None:
    decisions = play([None if v is None else window(v) for v in values])
    for decision in decisions:
        if decision.band_index is None:
            assert decision.settings is None
        else:
            assert decision.settings == SCHEDULE.bands[decision.band_index].settings
            others = {r.band_index for r in decision.rejected}
            assert others == set(range(len(SCHEDULE.bands))) - {decision.band_index}
