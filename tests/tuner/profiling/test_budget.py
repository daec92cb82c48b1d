"""Wall-clock seconds shared by parts with starts of unknown length, on a clock of our own."""

from __future__ import annotations

import pytest

from tuner.profiling.budget import Budget


class Clock:
    """Time that passes only when told."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_parts_with_starts_end_together_about_when_they_should() -> None:
    clock = Clock()
    budget = Budget(40.0, clock=clock)
    for left in range(8, 0, -1):
        with budget.part(1 / left) as seconds:
            clock.now_s += 3.0 + seconds  # a start that takes three times what was guessed
    assert clock.now_s - 100.0 == pytest.approx(40.0, abs=3.0)
    assert budget.fixed_s == pytest.approx(24.0)
    assert budget.left_s == pytest.approx(0.0, abs=3.0)


def test_parts_for_which_there_is_no_time_measure_the_least_and_it_counts_as_fixed() -> None:
    clock = Clock()
    budget = Budget(1.0, clock=clock)
    granted = []
    for left in (3, 2, 1):
        with budget.part(1 / left) as seconds:
            granted.append(seconds)
            clock.now_s += 5.0
    assert granted == [0.0, 0.0, 0.0]
    assert budget.fixed_s == 15.0
    assert budget.left_s == 0.0


def test_an_inner_budget_has_its_share_of_what_is_left() -> None:
    clock = Clock()
    budget = Budget(10.0, clock=clock)
    clock.now_s += 4.0
    inner = budget.inner(0.5)
    assert inner.left_s == 3.0
    with inner.start():
        clock.now_s += 1.0
    assert (inner.fixed_s, inner.left_s, budget.left_s) == (1.0, 2.0, 5.0)
