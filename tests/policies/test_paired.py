"""Differences over draws that two cases share."""

from __future__ import annotations

import math

import pytest

from policies.paired import Change, paired_change

BEFORE = (100.0, 400.0, 50.0, 900.0)


def test_what_is_faster_on_every_draw_is_beyond_their_noise_however_unlike_the_draws_are() -> None:
    found = paired_change([0.8 * v * (1 + 0.01 * i) for i, v in enumerate(BEFORE)], BEFORE)
    assert found is not None
    assert found.share == pytest.approx(-0.19, abs=0.01)
    assert found.low < found.share < found.high < 0
    assert found.is_beyond_noise
    assert Change.from_json(found.to_json()) == found


def test_what_is_faster_on_some_draws_only_is_within_noise() -> None:
    found = paired_change([1.3 * BEFORE[0], 0.8 * BEFORE[1], BEFORE[2], 0.9 * BEFORE[3]], BEFORE)
    assert found is not None
    assert not found.is_beyond_noise
    assert "within noise" in str(found)


@pytest.mark.parametrize(
    ("after", "before"), [([1.0], [1.0]), ([math.inf, 1.0], [1.0, 1.0]), ([0.0, 1.0], [1.0, 1.0])]
)
def test_a_difference_that_cannot_be_known_is_none(after: list[float], before: list[float]) -> None:
    assert paired_change(after, before) is None


def test_a_change_that_rounds_to_nothing_has_no_minus() -> None:
    assert str(Change(share=-0.0001, low=-0.002, high=0.0002)) == (
        "+0.0 % (-0.2 .. +0.0, within noise)"
    )
