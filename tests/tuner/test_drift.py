"""The drift alarm: quiet under the model's own error, sure of what stays, silent on hiccups."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.drift import Direction, DriftAlarm
from tuner.spec.errors import TunerError

WATCH = DriftAlarm(allowance=0.08, noise=0.1)


def after(alarm: DriftAlarm, ratios: Iterable[float]) -> DriftAlarm:
    """Steps of 10 ms that took these times as long as predicted."""
    for ratio in ratios:
        alarm = alarm.after(0.010, 0.010 * ratio)
    return alarm


def noisy(factor: float, count: int, seed: int = 0) -> list[float]:
    residuals = np.random.default_rng(seed).normal(math.log(factor), 0.1, count)
    return [math.exp(r) for r in residuals]


def test_steps_as_predicted_within_their_usual_error_are_no_drift() -> None:
    assert after(WATCH, noisy(1.0, 20_000)).drift is None
    assert after(WATCH, noisy(1.06, 5_000)).drift is None


@pytest.mark.parametrize(
    ("factor", "direction"), [(1.5, Direction.SLOWER), (0.6, Direction.FASTER)]
)
def test_steps_that_stay_slower_or_faster_raise_it_with_the_size(
    factor: float, direction: Direction
) -> None:
    drift = after(after(WATCH, noisy(1.0, 500)), noisy(factor, 100, seed=1)).drift
    assert drift is not None
    assert drift.direction is direction
    assert drift.share == pytest.approx(factor - 1, abs=0.05)
    assert f"steps are {direction} than predicted: " in str(drift)


def test_a_hiccup_is_no_drift_however_long_its_steps_were() -> None:
    assert after(WATCH, [*noisy(1.0, 100), *[50.0] * 20, *noisy(1.0, 100)]).drift is None


def test_it_stays_on_until_it_is_cleared() -> None:
    raised = after(WATCH, [2.0] * 40)
    calm = after(raised, noisy(1.0, 5_000)).drift
    assert calm is not None
    assert abs(calm.share) < 0.05
    assert raised.cleared() == WATCH


@given(st.lists(st.floats(0.2, 5.0), max_size=60))
def test_a_watch_that_is_kept_and_read_back_goes_on_as_if_it_had_not_been(
    ratios: list[float],
) -> None:
    half = after(WATCH, ratios[::2])
    kept = DriftAlarm.from_json(json.loads(json.dumps(half.to_json())))
    assert after(kept, ratios[1::2]) == after(half, ratios[1::2])


@pytest.mark.parametrize("times", [(0.0, 0.1), (0.1, 0.0), (math.nan, 0.1), (0.1, math.inf)])
def test_what_is_no_time_is_refused_by_name(times: tuple[float, float]) -> None:
    with pytest.raises(TunerError, match=r"_s=.*above 0"):
        WATCH.after(*times)


def test_a_watch_that_cannot_be_read_says_what_is_wrong() -> None:
    with pytest.raises(TunerError, match=r"drift alarm: .*patience"):
        DriftAlarm.from_json({**WATCH.to_json(), "patience": "long"})
    with pytest.raises(TunerError, match="noise=0"):
        DriftAlarm(allowance=0.1, noise=0)
