"""Turning requests away: only where nothing else helps, and no longer than it lasts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.capacity_loop import decide_capacity, is_due
from policies.capacity_state import (
    CapacityDecision,
    CapacityLimits,
    CapacityMemory,
    CapacityReason,
    CapacityState,
    Queue,
)
from policies.decision import Action
from policies.shedding import (
    Overload,
    SheddingLimits,
    SheddingMemory,
    limit_admission,
    room_of,
)
from policies.sla import Sla
from tests.policies.capacity import RATE_OF_ONE_RPS, ahead, entry, table

TABLE = table()
MOST = 4
TOP_RPS = MOST * RATE_OF_ONE_RPS
TURN_S = 30.0


def state(rate_rps: float, *, replicas: int = MOST, **extra: object) -> CapacityState:
    known: dict[str, object] = {
        "table": TABLE,
        "now_s": 10_000.0,
        "current": entry(replicas),
        "forecast": ahead(rate_rps),
        "observed_rps": rate_rps,
    }
    return CapacityState(**{**known, **extra})


def play(rates: Sequence[float], first: CapacityState | None = None) -> list[CapacityDecision]:
    """Decisions one after the other, each put in force at once; every rate is what is offered."""
    turn, decisions = first or state(rates[0]), []
    for rate in rates:
        turn = replace(turn, now_s=turn.now_s + TURN_S, forecast=ahead(rate), observed_rps=rate)
        decision = decide_capacity(turn)
        decisions.append(decision)
        turn = replace(
            turn,
            memory=decision.memory,
            current=decision.entry,
            admitted_rps=decision.admission_rps,
        )
    return decisions


def admitted(decisions: Sequence[CapacityDecision]) -> list[float | None]:
    return [decision.admission_rps for decision in decisions]


def test_beyond_the_table_as_much_is_let_in_as_the_top_carries() -> None:
    assert admitted(play([7.0, 20.0, 30.0])) == [None, TOP_RPS, TOP_RPS]


def test_the_limit_comes_with_the_move_to_the_top() -> None:
    decision = decide_capacity(state(20.0, replicas=1))
    assert (decision.action, decision.entry) == (Action.MOVE, entry(MOST))
    assert decision.admission_rps == TOP_RPS


def test_longer_requests_are_let_in_at_a_lower_rate() -> None:
    """Of requests twice as long as those of the table half as many are carried."""
    decision = decide_capacity(
        state(20.0, request_size=2.0, memory=CapacityMemory(request_size=2.0))
    )
    assert decision.admit_rps == TOP_RPS
    assert decision.admission_rps == TOP_RPS / 2


def test_a_load_that_some_entry_carries_is_never_turned_away() -> None:
    assert decide_capacity(state(7.5, replicas=1)).admission_rps is None


def test_the_limit_goes_once_the_load_has_been_well_below_it_for_two_minutes() -> None:
    found = admitted(play([20.0, 6.0, 6.0, 7.9, 6.0, 6.0, 6.0, 6.0, 6.0]))
    assert found == [TOP_RPS] * 8 + [None]


def test_a_load_that_swings_about_the_top_does_not_make_the_limit_swing() -> None:
    found = admitted(play([8.5, 7.5] * 40))
    assert found == [TOP_RPS] * 80


def test_where_the_operator_says_no_the_rate_is_told_and_nobody_is_turned_away() -> None:
    limits = CapacityLimits(shedding=SheddingLimits(is_allowed=False))
    decision = decide_capacity(state(20.0, limits=limits))
    assert (decision.admit_rps, decision.admission_rps) == (TOP_RPS, None)
    set_before = play([20.0])[-1].memory
    lifted = decide_capacity(state(20.0, limits=limits, admitted_rps=TOP_RPS, memory=set_before))
    assert lifted.admission_rps is None


def test_no_data_changes_no_limit() -> None:
    memory = play([20.0])[-1].memory
    blind = state(20.0, forecast=None, observed_rps=None, admitted_rps=TOP_RPS, memory=memory)
    decision = decide_capacity(blind)
    assert decision.reason is CapacityReason.NO_DATA
    assert (decision.admission_rps, decision.memory.shedding) == (TOP_RPS, memory.shedding)


def test_a_limit_that_somebody_else_set_is_left_as_it_is() -> None:
    assert admitted(play([20.0, 1.0, 1.0], state(20.0, admitted_rps=3.0))) == [3.0] * 3


def test_a_limit_that_somebody_lifted_is_not_set_again_in_this_overload() -> None:
    memory = play([20.0])[-1].memory
    found = admitted(play([20.0, 25.0, 5.0, 20.0], state(20.0, memory=memory, admitted_rps=None)))
    assert found == [None, None, None, TOP_RPS]


def test_a_limit_that_somebody_lifted_stays_lifted_though_a_window_was_served_well() -> None:
    lifted = play([20.0])[-1].memory
    over = state(20.0, memory=lifted, admitted_rps=None, attainment=0.9)
    after = decide_capacity(replace(over, memory=decide_capacity(over).memory, attainment=0.1))
    assert after.admission_rps is None


def test_another_plan_put_in_force_by_hand_lifts_the_limit_of_the_one_before() -> None:
    memory = play([20.0], state(20.0, replicas=MOST, limits=CapacityLimits()))[-1].memory
    by_hand = state(20.0, replicas=2, memory=memory, admitted_rps=TOP_RPS)
    decision = decide_capacity(by_hand)
    assert decision.reason is CapacityReason.DRIFT_PAUSED
    assert decision.admission_rps is None


def test_where_no_more_changes_are_allowed_this_hour_the_engine_sheds_meanwhile() -> None:
    limits = CapacityLimits(min_interval_s=0.0, max_per_h=1)
    found = play([3.5, 7.0], state(3.5, replicas=1, limits=limits))
    assert [d.reason for d in found] == [CapacityReason.LOAD_UP, CapacityReason.GUARD_PER_HOUR]
    assert found[1].admission_rps == 2 * RATE_OF_ONE_RPS


def test_an_admitted_load_that_misses_lowers_what_is_let_in() -> None:
    """The table promises too much: the correction sees it although more is offered."""
    turn = play([20.0])[-1]
    now = state(20.0, memory=turn.memory, admitted_rps=TOP_RPS, is_sla_met=False)
    for nth in range(20):
        now = replace(now, now_s=10_000.0 + 200.0 + nth * TURN_S)
        decision = decide_capacity(now)
        now = replace(now, memory=decision.memory, admitted_rps=decision.admission_rps)
    assert decision.admission_rps is not None
    assert 0.5 * TOP_RPS <= decision.admission_rps < 0.8 * TOP_RPS


@given(st.lists(st.floats(0.0, 40.0), min_size=1, max_size=60), st.integers(1, MOST))
def test_never_less_is_let_in_than_the_entry_in_force_carries(
    rates: list[float], replicas: int
) -> None:
    for decision in play(rates, state(rates[0], replicas=replicas)):
        if decision.admission_rps is not None:
            assert decision.admission_rps == pytest.approx(decision.entry.low_rps)


TPOT, TTFT = "p95_tpot_ms<=50", "p95_ttft_ms<=500"


@pytest.mark.parametrize(
    ("binding", "seen_before", "seen_now", "admission_rps"),
    [
        (TTFT, None, None, TOP_RPS),
        (TTFT, None, 0.8, None),
        (TTFT, None, 0.3, TOP_RPS),
        (TPOT, None, None, None),
        (TPOT, 0.8, 0.3, None),
        (TPOT, 0.3, 0.3, TOP_RPS),
    ],
)
def test_nobody_is_turned_away_while_more_meet_the_sla_than_would_be_let_in(
    binding: str, seen_before: float | None, seen_now: float | None, admission_rps: float | None
) -> None:
    """Where requests queue the last window tells; where they share steps, what is seen for long."""
    top = replace(entry(MOST), binding=Sla.parse(binding).constraints[0])
    known = table(*(entry(n) for n in range(1, MOST)), top)
    offered_rps = 2 * TOP_RPS
    met_rps = None if seen_before is None else seen_before * offered_rps
    over = state(offered_rps, table=known, current=top, memory=CapacityMemory(met_rps=met_rps))
    decision = decide_capacity(replace(over, attainment=seen_now))
    assert decision.reason is CapacityReason.BEYOND_TABLE
    assert decision.admission_rps == admission_rps


def test_what_met_the_sla_is_learned_while_nobody_is_turned_away() -> None:
    turn = state(10.0, attainment=0.9)
    for attainment in (0.9, 0.5, 0.5, 0.5):
        decision = decide_capacity(replace(turn, attainment=attainment))
        turn = replace(turn, memory=decision.memory)
    assert turn.memory.met_rps is not None
    assert 5.0 < turn.memory.met_rps < 7.0
    limited = decide_capacity(replace(turn, attainment=1.0, admitted_rps=TOP_RPS))
    assert limited.memory.met_rps == turn.memory.met_rps


def overload(**changes: object) -> Overload:
    known: dict[str, object] = {
        "now_s": 0.0,
        "offered_rps": 20.0,
        "carried_rps": 8.0,
        "in_force_rps": None,
    }
    return Overload(**{**known, **changes})


def limits_over(looks: Sequence[dict[str, object]]) -> list[float | None]:
    """The limit after each look, ten seconds apart, each put in force at once."""
    memory, in_force, found = SheddingMemory(), None, []
    for nth, changes in enumerate(looks):
        seen = overload(now_s=10.0 * nth, in_force_rps=in_force, **changes)
        in_force, memory = limit_admission(memory, seen, SheddingLimits())
        found.append(in_force)
    return found


def test_while_nobody_waits_for_long_the_limit_is_probed_upwards_and_then_kept_at_what_did() -> (
    None
):
    looks = [{"is_queue_long": True}, *[{"is_queue_long": False}] * 2, {"is_queue_long": True}]
    looks += [{"is_queue_long": False}] * 4
    assert limits_over(looks) == [8.0, 10.0, 12.5, 8.0, 10.0, 10.0, 10.0, 10.0]


def test_what_is_kept_is_probed_again_after_a_while() -> None:
    looks = [{"is_queue_long": True}, {"is_queue_long": False}, {"is_queue_long": True}]
    found = limits_over([*looks, *[{"is_queue_long": False}] * 14])
    assert found[2] == 8.0
    assert found[-1] is not None
    assert found[-1] > 8.0


def test_a_queue_that_is_worked_off_faster_than_the_table_says_lets_in_nearly_as_much() -> None:
    assert limits_over([{"is_queue_long": True, "finished_rps": 15.0}]) == [0.9 * 15.0]


def test_a_limit_above_which_little_comes_is_lifted() -> None:
    """A gust closed the door; what comes after it is more than the table says and is carried."""
    looks = [{"is_queue_long": True, "offered_rps": 40.0}]
    looks += [{"is_queue_long": False, "offered_rps": 11.0}] * 20
    assert limits_over(looks)[-1] is None


def test_where_nobody_waits_for_long_for_a_first_token_what_missed_is_over() -> None:
    bound = TABLE.sla.constraints[0]
    top = replace(entry(MOST), binding=bound)
    entries = tuple(replace(e, binding=bound) for e in TABLE.entries)
    missed = state(
        20.0,
        table=replace(TABLE, entries=entries),
        current=top,
        is_sla_met=False,
        attainment=0.0,
        queue=Queue(waiting=0.0, finished_rps=10.0),
    )
    assert decide_capacity(missed).admission_rps is None
    few = replace(missed, queue=Queue(waiting=2.0, finished_rps=10.0))
    assert decide_capacity(few).admission_rps is None
    waiting = replace(missed, queue=Queue(waiting=50.0, finished_rps=10.0))
    assert (decide_capacity(waiting).admission_rps or 0.0) < 9.0


def test_while_a_queue_is_long_less_comes_in_than_is_carried_and_then_as_much_again() -> None:
    long = {"is_queue_long": True, "borne": 16.0}
    looks = [{**long, "waiting": waiting} for waiting in (200.0, 88.0, 48.0)]
    looks += [{"is_queue_long": False, "borne": 16.0, "waiting": 0.0}]
    assert limits_over(looks) == [0.05 * 8.0, 4.0, 6.0, 10.0]


def test_what_is_finished_off_a_queue_that_stands_is_believed_rather_than_the_table() -> None:
    standing = {"is_queue_long": True, "is_queue_standing": True, "finished_rps": 5.0}
    found = limits_over([{"is_queue_long": True}, standing, *[{"is_queue_long": False}] * 10])
    assert found == [8.0, *[0.9 * 5.0] * 11]


def test_a_queue_that_is_felt_but_not_yet_too_long_takes_the_last_step_back() -> None:
    quiet = {"is_queue_long": False, "borne": 20.0}
    found = limits_over([{"is_queue_long": True}, quiet, quiet, {**quiet, "waiting": 11.0}])
    assert found == [8.0, 10.0, 12.5, pytest.approx(10.0, rel=0.01)]


def test_where_the_sla_bears_hardly_anybody_waiting_one_who_waits_is_chance() -> None:
    quiet = {"is_queue_long": False, "borne": 4.0}
    looks = [{"is_queue_long": True}, quiet, {**quiet, "waiting": 3.0}]
    assert limits_over(looks) == [8.0, 10.0, 10.0]


def test_a_limit_does_not_grow_far_beyond_what_comes() -> None:
    """It would be found out only when all of that came at once."""
    looks = [{"is_queue_long": True, "offered_rps": 9.0}]
    looks += [{"is_queue_long": False, "offered_rps": 9.0}] * 11
    assert max(limit or 0.0 for limit in limits_over(looks)) <= 1.2 * 9.0


def test_so_many_wait_that_nobody_is_asked_how_those_before_were_served() -> None:
    """Those that ended in the last window came before the queue did."""
    known = {"met_rps": 20.0, "finished_rps": 10.0, "borne": 10.0, "is_queue_long": True}
    assert limits_over([{**known, "waiting": 100.0}]) == [None]
    assert limits_over([{**known, "waiting": 300.0}]) != [None]


def test_a_gust_that_a_busy_engine_works_off_in_time_does_not_shut_the_door() -> None:
    """Little ended before it: 300 waiting would be a minute of that, and are 20 s of what a busy
    engine ends."""
    gust = {"met_rps": 20.0, "finished_rps": 4.0, "borne": 15.0, "is_queue_long": True}
    assert limits_over([{**gust, "waiting": 300.0}]) != [None]
    assert limits_over([{**gust, "waiting": 300.0, "busy_rps": 15.0}]) == [None]


def test_a_limit_begins_with_what_a_busy_engine_was_seen_to_end() -> None:
    known = {"busy_rps": 15.0, "is_queue_long": True}
    assert limits_over([known]) == [0.9 * 15.0]
    assert limits_over([{**known, "is_finish_enough": False}]) == [8.0]


def test_another_plan_begins_with_what_it_carries() -> None:
    """What a queue before the smaller plan told is nothing to the larger one."""
    learned = SheddingMemory(
        commanded_rps=1.0, level_rps=2.0, good_rps=2.0, troubled_s=9_990.0, worked_rps=2.2
    )
    memory = CapacityMemory(shedding=learned)
    decision = decide_capacity(state(20.0, replicas=1, memory=memory, admitted_rps=1.0))
    assert decision.entry == entry(MOST)
    assert decision.admission_rps == TOP_RPS


def test_misses_of_those_who_waited_in_a_queue_are_not_the_tables_error() -> None:
    memory = replace(play([20.0])[-1].memory, flooded_s=9_980.0)
    turn = state(
        20.0,
        memory=memory,
        admitted_rps=TOP_RPS,
        is_sla_met=False,
        queue=Queue(waiting=100.0, finished_rps=TOP_RPS, running=8.0),
    )
    assert decide_capacity(turn).memory.correction == 1.0


def test_a_table_is_corrected_by_what_ends_while_a_queue_stands() -> None:
    queue = Queue(waiting=100.0, finished_rps=0.7 * TOP_RPS, running=10.0)
    memory = CapacityMemory(flooded_s=9_900.0)
    turn = state(7.5, memory=memory, queue=queue)
    assert decide_capacity(turn).memory.correction < 1.0
    just_now = replace(turn, memory=CapacityMemory(flooded_s=9_980.0))
    assert decide_capacity(just_now).memory.correction == 1.0


def test_while_requests_are_turned_away_the_loop_looks_every_ten_seconds() -> None:
    memory = CapacityMemory(decided_s=0.0)
    calm = {"is_urgent": False, "slow_s": 180.0, "urgent_s": 30.0}
    assert not is_due(memory, 10.0, **calm)
    shedding = replace(memory, shedding=SheddingMemory(commanded_rps=8.0, level_rps=8.0))
    assert not is_due(shedding, 5.0, **calm)
    assert is_due(shedding, 10.0, **calm)


@given(st.floats(0.0, 100.0), st.floats(0.0, 100.0), st.sampled_from((0.01, 0.1, 0.3)))
def test_the_more_may_wait_the_more_is_let_in_of_what_ends(
    borne: float, more: float, may_miss: float
) -> None:
    room = room_of(borne, may_miss)
    assert 0.5 <= room <= room_of(borne + more, may_miss) + 1e-3
    assert room_of(math.inf, may_miss) == 0.9
    assert room_of(borne, 2 * may_miss) >= room - 1e-3
