"""A rise above what is carried is told at once; luck, gusts and small loads raise no alarms."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.capacity_loop import decide_capacity, is_due
from policies.capacity_state import CapacityLimits, CapacityMemory, CapacityState, Queue
from policies.capacity_watch import Look, is_news, watch
from policies.decision import Action
from policies.errors import PolicyInputError
from policies.surge import SurgeLimits, SurgeMemory, forget_surge, watch_arrivals
from tests.policies.capacity import RATE_OF_ONE_RPS, ahead, entry, table

LIMITS = SurgeLimits()
EVERY_S = LIMITS.every_s
READINGS_PER_H = round(3600 / EVERY_S)
Counts = npt.NDArray[np.int64]


def poisson(rate_rps: float, readings: int, seed: int) -> Counts:
    return np.random.default_rng(seed).poisson(rate_rps * EVERY_S, readings)


def gusts(rate_rps: float, readings: int, seed: int, *, cv: float = 2.0) -> Counts:
    """Arrivals whose gaps have this coefficient of variation (gamma renewals)."""
    rng, shape = np.random.default_rng(seed), cv**-2
    span_s = readings * EVERY_S
    gaps = rng.gamma(shape, 1 / (rate_rps * shape), round(1.5 * rate_rps * span_s) + 200)
    times = np.cumsum(gaps)
    assert times[-1] > span_s
    return np.bincount((times[times < span_s] // EVERY_S).astype(int), minlength=readings)


def follow(
    counts: Iterable[int], carried_rps: float, memory: SurgeMemory | None = None
) -> tuple[SurgeMemory, list[float]]:
    """The memory afterwards, and seconds from the begin until each alarm; after one, sums begin
    anew as after a change."""
    memory, alarms_s = memory or SurgeMemory(), []
    for nth, count in enumerate(counts, start=1):
        memory = watch_arrivals(
            memory,
            requests=float(count),
            seconds=EVERY_S,
            carried_rps=carried_rps,
            now_s=nth * EVERY_S,
            limits=LIMITS,
        )
        if memory.alarmed_s is not None:
            alarms_s.append(nth * EVERY_S)
            memory = forget_surge(memory)
    return memory, alarms_s


@pytest.mark.parametrize("rate_rps", [1.0, 5.0, 40.0])
def test_of_a_poisson_load_that_is_just_carried_alarms_are_as_rare_as_asked_for(
    rate_rps: float,
) -> None:
    hours = 40
    _, alarms_s = follow(poisson(rate_rps, hours * READINGS_PER_H, 7), rate_rps)
    assert len(alarms_s) <= LIMITS.false_alarms_per_h * hours


@pytest.mark.parametrize(("rate_rps", "cv"), [(1.0, 3.0), (5.0, 2.0), (5.0, 3.0), (40.0, 2.0)])
def test_so_they_are_of_a_load_that_comes_in_gusts(rate_rps: float, cv: float) -> None:
    """Of few requests a second, gusts last for longer than a reading."""
    hours = 40
    memory, alarms_s = follow(gusts(rate_rps, hours * READINGS_PER_H, 7, cv=cv), rate_rps)
    assert len(alarms_s) <= LIMITS.false_alarms_per_h * hours
    assert memory.dispersion > 2.0


@given(st.integers(0, 10_000), st.floats(0.5, 50.0), st.floats(0.1, 0.7))
def test_well_below_what_is_carried_there_is_no_alarm(
    seed: int, carried_rps: float, share: float
) -> None:
    _, alarms_s = follow(poisson(share * carried_rps, 200, seed), carried_rps)
    assert not alarms_s


@pytest.mark.parametrize(
    ("rise", "rate_rps", "seconds"),
    [(2.0, 5.0, 20.0), (2.0, 40.0, 10.0), (1.5, 5.0, 60.0), (1.5, 40.0, 10.0)],
)
def test_a_rise_is_told_within_seconds(rise: float, rate_rps: float, seconds: float) -> None:
    """From nine tenths of what is carried; the median of 21 draws."""
    delays_s = []
    for seed in range(21):
        calm = poisson(0.9 * rate_rps, READINGS_PER_H // 6, seed)
        before, _ = follow(calm, rate_rps)
        risen = poisson(0.9 * rise * rate_rps, READINGS_PER_H // 2, 100 + seed)
        _, alarms_s = follow(risen, rate_rps, before)
        delays_s.append(alarms_s[0])
    assert float(np.median(delays_s)) <= seconds


def test_a_step_is_no_gust() -> None:
    """How gusty a load is hardly moves with one step of it."""
    before, _ = follow(poisson(20.0, 120, 3), 100.0)
    after, _ = follow(poisson(40.0, 6, 4), 100.0, before)
    assert after.dispersion < 1.3 * max(before.dispersion, 1.0)


def test_an_alarm_tells_the_rate_since_the_rise_and_ends_with_it() -> None:
    memory = SurgeMemory()
    counts = [40] * 20 + [100] * 6 + [40] * 60
    seen: list[SurgeMemory] = []
    for nth, count in enumerate(counts):
        memory = watch_arrivals(
            memory,
            requests=count,
            seconds=EVERY_S,
            carried_rps=10.0,
            now_s=nth * EVERY_S,
            limits=LIMITS,
        )
        seen.append(memory)
    surging = [m.surging_rps for m in seen[20:26] if m.surging_rps is not None]
    assert surging
    assert all(rate == pytest.approx(20.0) for rate in surging)
    assert seen[19].alarmed_s is None
    assert seen[-1].alarmed_s is None


def test_a_memory_is_read_as_it_was_written() -> None:
    memory, _ = follow(poisson(5.0, 30, 1), 4.0)
    assert SurgeMemory.from_json(memory.to_json()) == memory
    assert SurgeMemory.from_json(None) == SurgeMemory()


@pytest.mark.parametrize("name", ["false_alarms_per_h", "every_s"])
def test_limits_that_cannot_be_are_refused(name: str) -> None:
    with pytest.raises(PolicyInputError, match=name):
        SurgeLimits(**{name: 0.0})


# -- in the slow loop ------------------------------------------------------------------------------

TABLE = table()


def look(now_s: float, requests: float, waiting: float | None = None) -> Look:
    queue = None if waiting is None else Queue(waiting=waiting, finished_rps=requests / EVERY_S)
    return Look(now_s=now_s, seconds=EVERY_S, requests=requests, queue=queue)


def test_a_rise_does_not_wait_for_its_turn_and_gets_what_it_needs_at_once() -> None:
    """Twice what one replica carries, ten seconds after a decision; a window of thirty still tells
    of the calm before."""
    memory = CapacityMemory(decided_s=100.0)
    now_s = 100.0
    while not is_news(memory):
        now_s += EVERY_S
        memory = watch(memory, look(now_s, 6 * EVERY_S), entry(1), TABLE, CapacityLimits())
        assert now_s < 120.0
    assert is_due(memory, now_s, is_urgent=False, slow_s=180.0, urgent_s=30.0)
    decision = decide_capacity(
        CapacityState(
            table=TABLE,
            now_s=now_s,
            current=entry(1),
            forecast=ahead(1.0),
            observed_rps=2.5,
            observed_luck=0.2,
            memory=memory,
        )
    )
    assert (decision.action, decision.entry) == (Action.MOVE, entry(3))
    assert decision.memory.surge.alarmed_s is None, "told of the entry before"


def test_a_queue_longer_than_the_sla_bears_is_news_once() -> None:
    """Half a second is borne: of one replica one request."""
    limits = CapacityLimits()
    memory = CapacityMemory(decided_s=100.0)
    short = watch(memory, look(105.0, 5, waiting=1), entry(1), TABLE, limits)
    assert not is_news(short)
    memory = watch(short, look(110.0, 5, waiting=9), entry(1), TABLE, limits)
    assert is_news(memory)
    seen = replace(memory, decided_s=110.0)
    assert not is_news(watch(seen, look(115.0, 5, waiting=12), entry(1), TABLE, limits))


def test_a_queue_heard_before_a_window_shows_its_load_is_looked_at_again_soon() -> None:
    """The window of thirty seconds still tells of the calm before when the queue is heard."""
    limits = CapacityLimits()
    memory = watch(
        CapacityMemory(decided_s=100.0), look(105.0, 10, waiting=9), entry(1), TABLE, limits
    )
    known = {"table": TABLE, "current": entry(1), "forecast": ahead(1.0), "observed_luck": 0.2}
    early = decide_capacity(CapacityState(now_s=105.0, observed_rps=1.5, memory=memory, **known))
    assert early.action is Action.HOLD
    memory = watch(early.memory, look(110.0, 10, waiting=14), entry(1), TABLE, limits)
    memory = watch(memory, look(115.0, 10, waiting=19), entry(1), TABLE, limits)
    assert is_due(memory, 115.0, is_urgent=False, slow_s=180.0, urgent_s=10.0)
    late = decide_capacity(CapacityState(now_s=115.0, observed_rps=2.3, memory=memory, **known))
    assert late.action is Action.MOVE


def test_a_queue_that_is_worked_off_is_no_news() -> None:
    memory = CapacityMemory(decided_s=100.0)
    limits = CapacityLimits()
    memory = replace(memory, surge=replace(memory.surge, waiting=20.0))
    assert not is_news(watch(memory, look(105.0, 5, waiting=9), entry(1), TABLE, limits))


def test_a_window_above_what_fewer_devices_carry_starts_their_dwell_anew() -> None:
    memory = CapacityMemory(enough_since_s=(10.0, 20.0, 30.0, 40.0))
    seen = Look(now_s=50.0, seconds=EVERY_S, requests=25.0, observed_rps=2.5 * RATE_OF_ONE_RPS)
    after = watch(memory, seen, entry(4), TABLE, CapacityLimits())
    assert after.enough_since_s == (None, None, 30.0, 40.0)
