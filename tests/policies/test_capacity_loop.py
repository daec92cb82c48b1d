"""The slow loop: as many devices as the load needs, never back and forth, never for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.capacity_loop import decide_capacity
from policies.capacity_state import (
    CapacityDecision,
    CapacityLimits,
    CapacityMemory,
    CapacityReason,
    SwitchCost,
)
from policies.decision import Action
from policies.errors import PolicyInputError
from policies.surge import RISES, SurgeMemory, SurgeSum
from tests.policies.capacity import RATE_OF_ONE_RPS, ahead, entry, state, table

TURN_S = 180.0
# A start of a minute and a half, and half a minute of draining.
STARTS = (SwitchCost(back_s=120.0, back_start_s=90.0),) * 4
quick = CapacityLimits(dwell_s=0.0, min_interval_s=0.0, max_per_h=1000)


def play(
    rates: Sequence[float],
    *,
    limits: CapacityLimits,
    replicas: int = 1,
    every_s: float = TURN_S,
    costs: tuple[SwitchCost, ...] = (),
) -> list[CapacityDecision]:
    """Decisions one after the other, each put in force at once."""
    turn, decisions = state(rates[0], replicas, now_s=0.0, limits=limits, costs=costs), []
    for nth, rate in enumerate(rates):
        turn = replace(turn, now_s=nth * every_s, forecast=ahead(rate), observed_rps=rate)
        decision = decide_capacity(turn)
        decisions.append(decision)
        turn = replace(turn, memory=decision.memory, current=decision.entry)
    return decisions


def test_more_load_takes_the_cheapest_entry_that_carries_it() -> None:
    decision = decide_capacity(state(5.0, 1))
    assert (decision.action, decision.reason) == (Action.MOVE, CapacityReason.LOAD_UP)
    assert decision.entry == entry(3)


def test_a_load_that_is_there_counts_whatever_was_forecast() -> None:
    decision = decide_capacity(state(1.0, 1, observed_rps=5.0))
    assert decision.entry == entry(3)


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"forecast": None}, CapacityReason.NO_DATA),
        ({"observed_rps": None}, CapacityReason.NO_DATA),
        ({"age_s": 600.0}, CapacityReason.STALE_DATA),
    ],
)
def test_no_data_is_not_silence(extra: dict[str, object], reason: CapacityReason) -> None:
    decision = decide_capacity(state(0.1, 4, **extra, limits=quick))
    assert (decision.action, decision.reason) == (Action.HOLD, reason)


def test_devices_are_given_back_after_the_dwell_time_only() -> None:
    limits = CapacityLimits(dwell_s=600.0, min_interval_s=0.0)
    decisions = play([1.0] * 6, limits=limits, replicas=4)
    assert [d.reason for d in decisions[:4]] == [CapacityReason.DWELL] * 4
    assert decisions[4].reason is CapacityReason.LOAD_DOWN
    assert decisions[4].entry == entry(1)


def test_a_peak_on_the_way_starts_the_dwell_time_anew() -> None:
    limits = CapacityLimits(dwell_s=600.0, min_interval_s=0.0)
    decisions = play([1.0, 1.0, 7.5, 1.0, 1.0, 1.0], limits=limits, replicas=4)
    assert all(d.action is Action.HOLD for d in decisions)


def test_a_window_that_missed_never_gives_devices_back() -> None:
    decision = decide_capacity(state(1.0, 4, is_sla_met=False, limits=quick))
    assert decision.action is Action.HOLD


@given(st.floats(0.1, 7.9), st.integers(1, 4))
def test_a_constant_load_changes_capacity_once_at_most(rate: float, replicas: int) -> None:
    limits = CapacityLimits(dwell_s=300.0, min_interval_s=0.0, max_per_h=1000)
    decisions = play([rate] * 20, limits=limits, replicas=replicas)
    assert sum(d.action is Action.MOVE for d in decisions) <= 1
    assert decisions[-1].entry.low_rps >= rate


@given(st.lists(st.floats(0.0, 20.0), min_size=1, max_size=60), st.integers(1, 4))
def test_guards_and_devices_hold_whatever_the_load(rates: list[float], per_h: int) -> None:
    limits = CapacityLimits(max_per_h=per_h, min_interval_s=240.0, dwell_s=0.0, max_devices=3)
    decisions = play(rates, limits=limits)
    moves = [nth * TURN_S for nth, d in enumerate(decisions) if d.action is Action.MOVE]
    assert all(later - before >= 240.0 for before, later in pairwise(moves))
    assert all(sum(at - 3600 < other <= at for other in moves) <= per_h for at in moves)
    assert all(d.entry.num_devices <= 3 for d in decisions)


def test_a_square_wave_does_not_make_capacity_swing() -> None:
    """Two minutes high, two minutes low: what carries the high part stays."""
    rates = [6.0 if nth // 2 % 2 else 1.0 for nth in range(60)]
    decisions = play(rates, limits=CapacityLimits(), every_s=60.0, costs=STARTS)
    assert sum(d.action is Action.MOVE for d in decisions) == 1


def test_beyond_the_table_the_largest_serves_and_the_rest_is_turned_away() -> None:
    decision = decide_capacity(state(20.0, 4))
    assert decision.action is Action.RAISE_CONDITION
    assert decision.reason is CapacityReason.BEYOND_TABLE
    assert decision.admit_rps == 4 * RATE_OF_ONE_RPS
    grown = decide_capacity(state(20.0, 1))
    assert (grown.action, grown.entry) == (Action.MOVE, entry(4))


def test_a_change_that_costs_more_than_it_gains_is_left_out() -> None:
    """One slot of overload, and ranks would be away for longer than that."""
    forecast = ahead(2.1, 1.0, 1.0, 1.0, 1.0)
    costs = (SwitchCost(), *[SwitchCost(ready_s=300.0, away_s=300.0)] * 3)
    short = state(1.0, 1, forecast=forecast, costs=costs)
    assert decide_capacity(short).reason is CapacityReason.NOT_WORTH_IT
    lasting = replace(short, forecast=ahead(*[3.0] * 30))
    assert decide_capacity(lasting).action is Action.MOVE
    side_by_side = replace(short, costs=tuple(SwitchCost(ready_s=300.0) for _ in range(4)))
    assert decide_capacity(side_by_side).action is Action.MOVE


def test_a_rise_is_gone_after_once_as_much_was_missed_as_that_costs() -> None:
    """The forecast lags: only arrivals tell of 3 a second, where 2 are carried. Of 4 carried then a
    quarter is spare to work off what waits while ranks are away for 10 s: 120 requests miss."""
    costs = (SwitchCost(), *[SwitchCost(ready_s=10.0, away_s=10.0)] * 3)

    def after(seconds: float) -> CapacityDecision:
        rise = SurgeSum(sum=20.0, requests=3.0 * seconds, seconds=seconds)
        surge = replace(SurgeMemory(), sums=(rise,) * len(RISES), alarmed_s=9_990.0)
        memory = CapacityMemory(surge=surge)
        turn = state(3.0, 1, forecast=ahead(1.0), costs=costs, memory=memory)
        return decide_capacity(turn)

    early = after(12.0)
    assert early.reason is CapacityReason.NOT_WORTH_IT
    assert early.memory.look_s == 10_000.0 + (120.0 - 36.0) / 3.0
    late = after(41.0)
    assert (late.action, late.reason) == (Action.MOVE, CapacityReason.LOAD_UP)


def test_nobody_waits_so_that_devices_are_saved() -> None:
    costs = (SwitchCost(ready_s=30.0, away_s=30.0),) * 4
    turn = state(1.0, 4, costs=costs, limits=quick)
    later = replace(turn, memory=decide_capacity(turn).memory, now_s=turn.now_s + 3600.0)
    assert decide_capacity(later).reason is CapacityReason.NOT_WORTH_IT
    side_by_side = replace(later, costs=(SwitchCost(ready_s=30.0),) * 4)
    assert decide_capacity(side_by_side).reason is CapacityReason.LOAD_DOWN


def test_an_engine_that_carries_less_than_its_table_says_gets_more() -> None:
    turn = state(1.8, 1, is_sla_met=False, now_s=0.0)
    for nth in range(10):
        turn = replace(turn, now_s=nth * TURN_S)
        decision = decide_capacity(turn)
        if decision.action is Action.MOVE:
            break
        turn = replace(turn, memory=decision.memory)
    assert decision.reason is CapacityReason.SLA_MISSED
    assert decision.entry == entry(2)
    assert 0.5 <= decision.memory.correction < 1


def test_the_queue_that_an_overload_left_is_not_the_tables_error() -> None:
    over = decide_capacity(state(3.0, 1, limits=replace(quick, max_devices=1)))
    after = state(1.5, 1, is_sla_met=False, now_s=10_030.0, memory=over.memory)
    assert decide_capacity(after).memory.correction == 1.0


@pytest.mark.parametrize(("rate_rps", "replicas"), [(7.5, 1), (1.0, 4)])
def test_who_forbids_changes_gets_none_and_is_told(rate_rps: float, replicas: int) -> None:
    limits = CapacityLimits(max_per_h=0, min_interval_s=0.0, dwell_s=0.0)
    decisions = play([rate_rps] * 20, limits=limits, replicas=replicas)
    assert {d.action for d in decisions} == {Action.HOLD}
    assert decisions[-1].reason is CapacityReason.GUARD_PER_HOUR


@pytest.mark.parametrize("limit", [{"chance": 1.0}, {"headroom": -0.1}, {"max_per_h": -1}])
def test_limits_that_cannot_be_are_refused(limit: dict[str, float]) -> None:
    with pytest.raises(PolicyInputError, match=next(iter(limit))):
        CapacityLimits(**limit)


def test_what_luck_brings_in_one_window_is_no_more_load() -> None:
    """Twenty requests where 18 were carried; but a window that missed the SLA is believed."""
    lucky = state(1.5, 1, observed_rps=2.2, observed_luck=0.3)
    assert decide_capacity(lucky).action is Action.HOLD
    assert decide_capacity(replace(lucky, is_sla_met=False)).entry == entry(2)
    assert decide_capacity(replace(lucky, observed_luck=0.01)).entry == entry(2)


def test_a_queue_that_grows_while_devices_start_is_worked_off_by_more_of_them() -> None:
    costs = (SwitchCost(ready_s=60.0),) * 4
    assert decide_capacity(state(3.5, 1)).entry == entry(2)
    assert decide_capacity(state(3.5, 1, costs=costs)).entry == entry(3)
    assert decide_capacity(state(7.5, 1, costs=costs)).entry == entry(4)


def test_a_load_that_came_back_before_is_waited_for() -> None:
    """High for two minutes in every ten: five calm minutes are no reason to give devices back."""
    past = [6.0, 6.0, *[1.0] * 8] * 3
    ahead_of_it = ahead(1.0, past_rps=past)
    limits = CapacityLimits(dwell_s=300.0, min_interval_s=0.0)
    turn = state(1.0, 4, forecast=ahead_of_it, limits=limits, now_s=0.0, costs=STARTS)
    turn = replace(turn, memory=decide_capacity(turn).memory, now_s=400.0)
    decision = decide_capacity(turn)
    assert decision.entry == entry(3), "it carries what came back"
    kept = replace(turn, memory=decision.memory, current=entry(3), now_s=800.0)
    assert decide_capacity(kept).reason is CapacityReason.DWELL
    never = replace(turn, forecast=ahead(1.0, past_rps=[6.0, *[1.0] * 29]))
    assert decide_capacity(never).entry == entry(1)


def test_the_last_change_of_an_hour_is_kept_for_the_way_up() -> None:
    limits = CapacityLimits(dwell_s=0.0, min_interval_s=0.0, max_per_h=2)
    decisions = play([1.0, 5.0, 1.0, 1.0, 7.0], limits=limits, replicas=1, every_s=60.0)
    assert [d.action is Action.MOVE for d in decisions] == [False, True, False, False, True]
    assert decisions[3].reason is CapacityReason.GUARD_PER_HOUR


def test_after_a_load_that_nothing_carried_devices_are_kept_for_the_longest_patience() -> None:
    limits = CapacityLimits(dwell_s=300.0, longest_dwell_s=1800.0, min_interval_s=0.0)

    def given_back_s(is_sla_met: bool, luck: float) -> float:
        over = state(
            20.0,
            4,
            is_sla_met=is_sla_met,
            observed_luck=luck,
            limits=limits,
            costs=STARTS,
        )
        turn = replace(over, memory=decide_capacity(over).memory, is_sla_met=True)
        turn = replace(turn, forecast=ahead(1.0, past_rps=[1.0] * 30), observed_rps=1.0)
        while True:
            turn = replace(turn, now_s=turn.now_s + 60.0)
            decision = decide_capacity(turn)
            if decision.action is Action.MOVE:
                return turn.now_s - over.now_s
            turn = replace(turn, memory=decision.memory)

    assert given_back_s(False, 0.1) == 1800.0
    assert given_back_s(True, 0.1) == 360.0, "it was carried"
    assert given_back_s(False, 0.6) == 360.0, "it may have been luck"


@given(st.integers(2, 6), st.integers(2, 9), st.floats(5.0, 8.0))
def test_below_break_even_nothing_is_given_back(high: int, low: int, rate: float) -> None:
    """Calm spells shorter than what a start and its misses cost, whatever the wave: one move up."""
    turns = [rate if nth % (high + low) < high else 0.5 for nth in range(120)]
    decisions = play(turns, limits=CapacityLimits(), every_s=10.0, costs=STARTS, replicas=4)
    assert all(d.action is not Action.MOVE for d in decisions)


def test_devices_are_kept_for_as_long_as_to_start_them_again_costs() -> None:
    """Of a load that was watched for an hour and never came back: a start and a drain."""
    known = ahead(1.0, past_rps=[1.0] * 60)
    turn = state(1.0, 4, forecast=known, costs=STARTS, now_s=0.0)
    given_back_s = None
    for now_s in range(0, 400, 10):
        decision = decide_capacity(replace(turn, now_s=float(now_s)))
        if decision.action is Action.MOVE:
            given_back_s = now_s
            break
        turn = replace(turn, memory=decision.memory)
    assert given_back_s == STARTS[0].back_s
    assert turn.memory.look_s == STARTS[0].back_s


def test_of_a_load_that_was_not_watched_for_long_nothing_is_given_back() -> None:
    """A start of 90 s misses twice as long; of ten times that a tenth may miss."""
    for minutes, is_kept in ((20, True), (40, False)):
        known = ahead(1.0, past_rps=[1.0] * minutes)
        turn = state(1.0, 4, forecast=known, costs=STARTS, now_s=0.0)
        later = replace(turn, memory=decide_capacity(turn).memory, now_s=600.0)
        assert (decide_capacity(later).action is Action.HOLD) == is_kept


def test_a_falling_load_is_followed_entry_by_entry() -> None:
    """Each entry has its own dwell: it does not begin anew with each step down."""
    rates = [8.0 - 0.02 * nth for nth in range(350)]
    known = ahead(1.0, past_rps=[1.0] * 60)
    turn = state(8.0, 4, costs=STARTS, limits=replace(quick, dwell_s=60.0))
    sizes = []
    for nth, rate in enumerate(rates):
        forecast = replace(known, rates_rps=ahead(rate).rates_rps)
        turn = replace(turn, now_s=10.0 * nth, forecast=forecast, observed_rps=rate)
        decision = decide_capacity(turn)
        turn = replace(turn, memory=decision.memory, current=decision.entry)
        sizes.append(decision.entry.num_devices)
    for fewer in (3, 2, 1):
        enough = next(nth for nth, rate in enumerate(rates) if rate <= fewer * RATE_OF_ONE_RPS)
        lag_s = 10.0 * (sizes.index(fewer) - enough)
        assert STARTS[0].back_s <= lag_s <= STARTS[0].back_s + 20.0


def test_where_all_ranks_have_to_stop_the_next_larger_entry_is_gone_to_while_they_serve() -> None:
    """Another pipeline degree on three devices; two replicas of what serves on four."""
    known = table(entry(1, tp=2), entry(1, tp=3, rate_rps=3.5), entry(2, tp=2))
    stop, free = SwitchCost(ready_s=60.0, away_s=60.0), SwitchCost(ready_s=60.0)
    now = state(3.0, 1, table=known, current=known.entries[0], costs=(free, stop, free))
    decision = decide_capacity(now)
    assert decision.reason is CapacityReason.LOAD_UP
    assert decision.entry == known.entries[2]
    # Where nothing larger is gone to so easily, the change has to be worth it.
    decision = decide_capacity(replace(now, costs=(free, stop, stop)))
    assert decision.entry.num_devices != 4


def test_an_entry_that_needs_a_stop_keeps_no_smaller_one_from_being_gone_to() -> None:
    known = table(entry(1, tp=2), entry(1, tp=3, rate_rps=3.5), entry(2, tp=2, rate_rps=5.0))
    stop, free = SwitchCost(ready_s=60.0, away_s=60.0), SwitchCost(ready_s=1.0)
    start = state(3.0, 1, table=known, current=known.entries[2], costs=(free, stop, free))
    start = replace(start, limits=quick)
    after = decide_capacity(replace(start, now_s=0.0))
    assert after.entry == known.entries[2]
    # Three devices have done for long, two for a moment.
    later = replace(start, now_s=1000.0, forecast=ahead(1.0), observed_rps=1.0, memory=after.memory)
    waiting = decide_capacity(later)
    assert waiting.reason is CapacityReason.DWELL
    assert waiting.memory.look_s is not None
    given = decide_capacity(replace(later, now_s=waiting.memory.look_s, memory=waiting.memory))
    assert given.reason is CapacityReason.LOAD_DOWN
    assert given.entry == known.entries[0]
