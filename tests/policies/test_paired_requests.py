"""Two settings on the same requests."""

from __future__ import annotations

import pytest

from policies.errors import PolicyInputError
from policies.paired_requests import paired_effect


def test_the_same_answers_differ_by_nothing() -> None:
    met = [True, False, True, True] * 10
    effect = paired_effect(met, met, list(range(40)), alpha=0.05)
    assert (effect.mean, effect.low, effect.high) == (0.0, 0.0, 0.0)


def test_what_is_worse_in_all_groups_is_below_nothing_for_sure() -> None:
    control, candidate = [True] * 60, [i % 3 > 0 for i in range(60)]
    effect = paired_effect(control, candidate, [i // 6 for i in range(60)], alpha=0.05)
    assert effect.mean == pytest.approx(-1 / 3)
    assert effect.high == pytest.approx(-1 / 3)


def test_what_is_worse_in_one_of_many_groups_may_be_luck() -> None:
    control = [True] * 100
    candidate = [i >= 10 for i in range(100)]
    effect = paired_effect(control, candidate, [i // 10 for i in range(100)], alpha=0.05)
    assert effect.mean == pytest.approx(-0.1)
    assert effect.high == pytest.approx(0.0)


def test_nothing_and_a_single_group_bound_nothing() -> None:
    assert paired_effect([], [], [], alpha=0.05).mean is None
    single = paired_effect([True], [False], [0], alpha=0.05)
    assert (single.mean, single.low, single.high) == (-1.0, -1.0, 1.0)


def test_requests_of_one_side_only_are_refused() -> None:
    with pytest.raises(PolicyInputError, match="2 and 1 requests in 2 groups"):
        paired_effect([True, True], [True], [0, 1], alpha=0.05)
