"""Steps that take longer than foreseen raise one alarm; noise and another load raise none."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.spec.modes import BASE, SHIFT, Mode
from policies.drift import (
    DriftLimits,
    DriftMemory,
    ForeseenSteps,
    StepSum,
    step_sums,
    watch,
)
from policies.errors import PolicyInputError

LIMITS = DriftLimits()
DAY_READINGS = round(86_400 / LIMITS.every_s)


def sums(*steps: tuple[Mode, int, int, float]) -> tuple[StepSum, ...]:
    """Of (mode, tokens of a step, steps, seconds of a step)."""
    return tuple(
        StepSum(
            mode=mode,
            tokens_up_to=1 << (tokens - 1).bit_length(),
            steps=count,
            seconds=count * each_s,
            tokens=count * tokens,
        )
        for mode, tokens, count, each_s in steps
    )


FORESEEN = ForeseenSteps(
    sums((BASE, 16, 900, 0.010), (BASE, 64, 900, 0.012), (SHIFT, 8, 500, 0.005))
)


def follow(ratios: Iterable[float], memory: DriftMemory | None = None) -> list[DriftMemory]:
    memory, found = memory or DriftMemory(), []
    for ratio in ratios:
        now_s = (memory.read_s or 0.0) + LIMITS.every_s
        memory = watch(memory, math.log(ratio), now_s, LIMITS)
        found.append(memory)
    return found


def num_alarms(memories: Iterable[DriftMemory]) -> int:
    return len({m.alarmed_s for m in memories if m.alarmed_s is not None})


def test_steps_as_foreseen_have_a_ratio_of_one_whatever_the_load() -> None:
    for mix in ([(BASE, 16, 90, 0.010)], [(BASE, 16, 9, 0.010), (SHIFT, 8, 400, 0.005)]):
        assert FORESEEN.log_ratio(sums(*mix)) == pytest.approx(0.0)


def test_between_two_sizes_seconds_lie_between_theirs() -> None:
    assert FORESEEN.seconds(BASE, 32) == pytest.approx(math.sqrt(0.010 * 0.012))


def test_steps_a_fifth_slower_are_seen_so() -> None:
    seen = sums((BASE, 20, 100, 1.2 * 0.0102), (SHIFT, 8, 100, 1.2 * 0.005))
    ratio = FORESEEN.log_ratio(seen)
    assert ratio is not None
    assert math.exp(ratio) == pytest.approx(1.2, rel=0.02)


def test_of_steps_that_were_not_foreseen_nothing_is_said() -> None:
    assert FORESEEN.log_ratio(sums((SHIFT, 512, 900, 0.5))) is None
    assert FORESEEN.log_ratio(sums((BASE, 16, 5, 0.010))) is None
    assert FORESEEN.log_ratio(sums((BASE, 16, 100, 0.010), (BASE, 4096, 100, 0.9))) is None


@given(st.integers(0, 2**32 - 1))
def test_a_slowdown_of_a_fifth_raises_one_alarm_within_half_an_hour(seed: int) -> None:
    noise = np.exp(np.random.default_rng(seed).normal(0.0, 0.03, 200))
    found = follow([*noise[:100], *(1.2 * noise[100:])])
    assert num_alarms(found[:100]) == 0
    assert num_alarms(found) == 1
    (raised,) = {m.alarmed_s for m in found if m.alarmed_s is not None}
    assert raised - 100 * LIMITS.every_s <= 1800.0
    assert found[-1].ratio == pytest.approx(1.2, rel=0.1)


def test_steps_that_became_faster_are_drift_as_well() -> None:
    assert num_alarms(follow([0.8] * 40)) == 1


def test_a_day_of_noise_within_the_tolerance_raises_none() -> None:
    """Readings off by 5 % at random, about a mean that is off by another 5 %, for 20 days."""
    for seed in range(20):
        noise = np.exp(np.random.default_rng(seed).normal(0.0, 0.05, DAY_READINGS))
        assert num_alarms(follow(1.05 * noise)) == 0


def test_a_hiccup_of_one_reading_raises_none() -> None:
    assert num_alarms(follow([1.0, 1.0, 1.6, 1.0, 1.0] * 50)) == 0


def test_the_alarm_falls_once_steps_are_as_foreseen_again() -> None:
    drifted = follow([1.5] * 1000)
    back = follow([1.0] * 70, drifted[-1])
    assert drifted[-1].alarmed_s is not None
    assert back[-1].alarmed_s is None


def test_heartbeats_add_up_by_mode_and_size() -> None:
    one = {"mode": "base", "tokens_up_to": 64, "steps": 2, "seconds": 0.5, "tokens": 100}
    (found,) = step_sums([one, one])
    assert (found.steps, found.seconds, found.tokens) == (4, 1.0, 200)
    with pytest.raises(PolicyInputError, match="steps of an engine"):
        step_sums([{"mode": "base"}])
