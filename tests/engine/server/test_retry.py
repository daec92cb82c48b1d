"""When callers are told to come back."""

from __future__ import annotations

import pytest

from engine.server.retry import FinishRate


def test_the_wait_is_the_queue_at_the_pace_of_late() -> None:
    rate = FinishRate()
    for tenth in range(100, 200):
        rate.record(tenth / 10)  # ten a second
    assert rate.queue_s(40, 20.0) == pytest.approx(4)


def test_without_a_pace_the_guess_is_a_second() -> None:
    rate = FinishRate()
    assert rate.queue_s(40, 0.0) == 1
    rate.record(5.0)
    assert rate.queue_s(40, 100.0) == 1, "what finished long ago says nothing"


def test_the_wait_stays_between_a_second_and_a_minute() -> None:
    rate = FinishRate()
    rate.record(0.0)
    assert rate.queue_s(1000, 10.0) == 60
    assert rate.queue_s(0, 10.0) == 1
