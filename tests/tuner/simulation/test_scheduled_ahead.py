"""A simulated engine that schedules one step ahead: who joins when."""

from __future__ import annotations

import pytest

from engine.spec.measurement import Outcome
from tests.tuner.simulation.timed import timings


def test_a_request_to_an_idle_engine_starts_at_once_either_way() -> None:
    alone = (0.0, 32, 8)
    assert timings(alone, ahead=True) == timings(alone, ahead=False)


def test_a_request_that_comes_during_a_step_joins_the_step_after_next() -> None:
    first = (0.0, 16, 40)
    steps = timings(first, ahead=False)[0].token_s
    during = (steps[10] + steps[11]) / 2
    second = (during, 16, 4)
    sooner = timings(first, second, ahead=False)[1].token_s[0]
    later = timings(first, second, ahead=True)[1].token_s[0]
    step_s = steps[12] - steps[11]
    assert later - sooner == pytest.approx(step_s, rel=0.05)


def test_everyone_gets_all_tokens() -> None:
    arrivals = [(0.003 * i, 20 + 7 * (i % 5), 5 + 11 * (i % 3)) for i in range(60)]
    for dp in (1, 2):
        served = timings(*arrivals, ahead=True, dp=dp)
        assert all(timing.outcome is Outcome.COMPLETED for timing in served)
        outputs = [output for _, _, output in arrivals]
        assert [len(timing.token_s) for timing in served] == outputs
