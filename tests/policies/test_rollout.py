"""A canary by turns, played without an engine: time, counts and what is in force are told to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.errors import PolicyInputError
from policies.rollout import (
    Arm,
    Canary,
    CanaryAction,
    CanaryDecision,
    CanaryState,
    RolloutLimits,
    RolloutReason,
    Tally,
    decide_canary,
    order_of,
)

LIMITS = RolloutLimits(slice_s=30.0, wait_s=30.0, max_exposed_s=600.0, max_duration_s=3000.0)
TICK_S = 5.0
Attained = Callable[[Arm, int], Tally | None]


@dataclass(frozen=True, kw_only=True)
class Played:
    """How a canary ended, when, and what was asked of the engine on the way."""

    decision: CanaryDecision
    ended_s: float
    asked: tuple[Arm, ...]


def play(
    attained: Attained,
    *,
    limits: RolloutLimits = LIMITS,
    seed: str = "ro_1",
    until_s: float = 4000.0,
    ack_s: float = 1.0,
    age_s: Callable[[float], float] = lambda _: 0.0,
    arrived: int = 0,
) -> Played:
    """Turns every ``TICK_S``; the engine takes ``ack_s`` for a switch. ``attained`` tells what a
    slice counts (None: a part of it is missing)."""
    canary, now_s, asked, since_s = Canary(began_s=0.0), 0.0, [], 0.0
    while now_s <= until_s:
        tallies = {
            part.number: attained(part.arm, part.number) or Tally(met=0, judged=0, is_whole=False)
            for part in canary.due(now_s, limits)
        }
        decision = decide_canary(
            CanaryState(
                canary=canary,
                now_s=now_s,
                in_force_since_s=since_s if since_s <= now_s else None,
                data_age_s=age_s(now_s),
                seed=seed,
                limits=limits,
                tallies=tallies,
                num_arrived=arrived,
            )
        )
        canary = decision.canary
        if decision.action is CanaryAction.SWITCH:
            asked.append(canary.slices[-1].arm)
            since_s = now_s + ack_s
        elif decision.action is not CanaryAction.HOLD:
            return Played(decision=decision, ended_s=now_s, asked=tuple(asked))
        now_s += TICK_S
    hold = CanaryDecision(action=CanaryAction.HOLD, canary=canary)
    return Played(decision=hold, ended_s=now_s, asked=tuple(asked))


def always(candidate: float, control: float, judged: int = 100) -> Attained:
    shares = {Arm.CANDIDATE: candidate, Arm.CONTROL: control}
    return lambda arm, _: Tally(met=round(shares[arm] * judged), judged=judged)


def test_a_candidate_as_good_as_what_runs_is_promoted_before_the_cap() -> None:
    played = play(always(0.98, 0.98))
    assert played.decision.action is CanaryAction.PROMOTE
    assert played.decision.reason is RolloutReason.NOT_WORSE
    assert played.decision.canary.exposed_s < LIMITS.max_exposed_s


def test_a_regression_is_rolled_back_long_before_the_cap() -> None:
    played = play(always(0.5, 0.98))
    assert played.decision.action is CanaryAction.ROLL_BACK
    assert played.decision.reason is RolloutReason.REGRESSION
    assert played.decision.canary.exposed_s <= LIMITS.max_exposed_s / 2


def test_what_stays_open_is_rolled_back_at_the_cap() -> None:
    """As far below as is tolerated: neither worse nor not."""
    played = play(always(0.96, 0.98))
    assert played.decision.reason is RolloutReason.EXPOSURE_CAP
    exposed_s = played.decision.canary.exposed_s
    assert LIMITS.max_exposed_s <= exposed_s <= LIMITS.max_exposed_s + TICK_S


def test_requests_exposed_are_capped_too() -> None:
    limits = replace(LIMITS, max_exposed_requests=500)
    played = play(always(0.96, 0.98), limits=limits, arrived=20)
    assert played.decision.reason is RolloutReason.EXPOSURE_CAP
    assert 500 <= played.decision.canary.exposed_requests <= 520


def test_requests_that_come_until_control_is_back_in_force_are_exposed_as_their_seconds_are() -> (
    None
):
    canary = play(always(0.96, 0.98), arrived=10, ack_s=25.0).decision.canary
    assert canary.exposed_requests >= 0.95 * canary.exposed_s * 10 / TICK_S


def test_a_candidate_that_few_requests_met_may_serve_for_longer() -> None:
    limits = replace(LIMITS, few_requests=10_000)
    played = play(always(0.96, 0.98), limits=limits, arrived=1)
    assert played.decision.reason is RolloutReason.EXPOSURE_CAP
    assert played.decision.reason.is_undecided
    exposed_s = played.decision.canary.exposed_s
    assert 2 * LIMITS.max_exposed_s <= exposed_s <= 2 * LIMITS.max_exposed_s + TICK_S
    many = play(always(0.96, 0.98), limits=replace(limits, few_requests=50), arrived=1)
    assert many.decision.canary.exposed_s <= LIMITS.max_exposed_s + TICK_S


def test_silence_is_not_taken_for_few_requests() -> None:
    seed = next(f"ro_{n}" for n in range(99) if order_of(f"ro_{n}", 0)[0] is Arm.CANDIDATE)
    played = play(
        always(0.98, 0.98),
        limits=replace(LIMITS, few_requests=10_000),
        seed=seed,
        age_s=lambda now_s: 0.0 if now_s < 10 else 60.0,
    )
    assert played.decision.canary.exposed_s <= LIMITS.max_exposed_s + TICK_S


def test_silence_switches_and_judges_nothing_until_the_cap_ends_it() -> None:
    """Silent from the first candidate slice on: whatever is in force stays, and is counted."""
    seed = next(f"ro_{n}" for n in range(99) if order_of(f"ro_{n}", 0)[0] is Arm.CANDIDATE)
    played = play(always(0.98, 0.98), seed=seed, age_s=lambda now_s: 0.0 if now_s < 10 else 60.0)
    assert played.asked == (Arm.CANDIDATE,)
    assert played.decision.reason is RolloutReason.EXPOSURE_CAP
    assert played.decision.canary.pairs == ()


def test_silence_while_control_serves_exposes_nobody_and_ends_by_time() -> None:
    seed = next(f"ro_{n}" for n in range(99) if order_of(f"ro_{n}", 0)[0] is Arm.CONTROL)
    played = play(always(0.98, 0.98), seed=seed, age_s=lambda now_s: 0.0 if now_s < 10 else 60.0)
    assert played.decision.reason is RolloutReason.TIME_CAP
    assert played.decision.canary.exposed_s == 0.0


def test_an_engine_that_never_says_it_switched_ends_by_the_cap() -> None:
    played = play(always(0.98, 0.98), ack_s=1e9)
    assert len(played.asked) == 1
    assert played.decision.reason in (RolloutReason.EXPOSURE_CAP, RolloutReason.TIME_CAP)


def test_until_control_is_in_force_again_the_candidate_counts_as_exposed() -> None:
    """The engine takes no policy any more once it runs the candidate."""
    ack_s = 25.0
    played = play(always(0.96, 0.98), ack_s=ack_s)
    assert played.decision.reason is RolloutReason.EXPOSURE_CAP
    exposed_by_pair_s = LIMITS.slice_s + 2 * ack_s
    assert len(played.decision.canary.pairs) <= LIMITS.max_exposed_s / exposed_by_pair_s


def test_pairs_with_few_requests_or_missing_data_say_nothing() -> None:
    def some(arm: Arm, number: int) -> Tally | None:
        if number // 2 % 3 == 0:
            return None
        judged = 2 if number // 2 % 3 == 1 else 100
        return Tally(met=judged, judged=judged)

    played = play(some)
    assert played.decision.canary.num_set_aside >= 2 * len(played.decision.canary.pairs) - 2
    assert all(pair.control.judged == 100 for pair in played.decision.canary.pairs)


def test_every_slice_is_asked_for_in_the_order_of_its_pair() -> None:
    """Also where an arm goes on: a slice that begins otherwise would tell the arms apart."""
    played = play(always(0.96, 0.98), seed="ro_7")
    orders = [order_of("ro_7", pair) for pair in range(len(played.asked) // 2 + 1)]
    assert played.asked == tuple(arm for order in orders for arm in order)[: len(played.asked)]


def test_the_lot_is_fair_and_the_same_for_who_asks_again() -> None:
    orders = [order_of("ro_x", pair) for pair in range(2000)]
    assert orders == [order_of("ro_x", pair) for pair in range(2000)]
    assert all(set(order) == set(Arm) for order in orders)
    firsts = Counter(order[0] for order in orders)
    assert abs(firsts[Arm.CANDIDATE] - 1000) < 3 * 22.4


@settings(max_examples=25)
@given(st.data())
def test_whatever_comes_a_canary_ends_within_its_caps(data: st.DataObject) -> None:
    shares = st.floats(0, 1)

    def any_of(_arm: Arm, _number: int) -> Tally | None:
        judged = data.draw(st.integers(0, 50))
        if data.draw(st.booleans()):
            return None
        return Tally(met=round(data.draw(shares) * judged), judged=judged)

    limits = replace(LIMITS, max_exposed_s=120.0, max_duration_s=600.0)
    played = play(any_of, limits=limits, ack_s=data.draw(st.floats(0, 40)))
    assert played.decision.action in (CanaryAction.PROMOTE, CanaryAction.ROLL_BACK)
    assert played.decision.canary.exposed_s <= limits.max_exposed_s + TICK_S
    assert played.ended_s <= limits.max_duration_s + TICK_S
    assert played.decision.canary.under_way is None


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"slice_s": 0.0}, "slice_s=0.0"),
        ({"settle_s": 30.0}, "settle_s=30.0"),
        ({"wait_s": -1.0}, "wait_s=-1.0"),
        ({"alpha": 0.5}, "alpha=0.5"),
        ({"tolerance": 1.0}, "tolerance=1.0"),
        ({"max_exposed_s": 10.0}, "max_exposed_s=10.0"),
        ({"max_exposed_s": 40_000.0, "max_duration_s": 50_000.0}, "max_exposed_s=40000"),
        ({"max_exposed_requests": 0}, "max_exposed_requests=0"),
        ({"max_duration_s": 60.0}, "max_duration_s=60.0"),
        ({"few_requests": -1}, "few_requests=-1"),
        ({"min_requests": 0}, "min_requests=0"),
    ],
)
def test_limits_that_cannot_be_are_named(wrong: dict[str, float], named: str) -> None:
    with pytest.raises(PolicyInputError, match=named):
        RolloutLimits(**wrong)
