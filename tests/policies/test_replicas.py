"""How many engines a load needs, by what a schedule says that one of them serves."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from policies.decision import SmoothedLoad
from policies.replicas import desired_replicas, load_ratio
from policies.schedule import Schedule
from tests.api.worlds import schedule


def _load(rate_rps: float, input_tokens: float = 64, output_tokens: float = 3) -> SmoothedLoad:
    return SmoothedLoad(
        rate_rps=rate_rps, mean_input_tokens=input_tokens, mean_output_tokens=output_tokens
    )


def _with_headrooms(*headrooms: float) -> Schedule:
    bands = zip(schedule().bands, headrooms, strict=True)
    return Schedule(bands=tuple(replace(band, headroom=room) for band, room in bands))


def test_the_load_is_held_against_the_highest_rate_that_meets_the_sla() -> None:
    assert load_ratio(schedule(), _load(50)) == pytest.approx(0.5)
    assert load_ratio(_with_headrooms(0.5, -0.1), _load(50)) == pytest.approx(5.0)


def test_longer_requests_count_by_their_tokens() -> None:
    assert load_ratio(schedule(), _load(50, 128, 6)) == pytest.approx(1.0)


def test_where_no_rate_meets_the_sla_no_number_of_engines_is_named() -> None:
    assert load_ratio(_with_headrooms(-0.1, -0.2), _load(50)) is None
    endless = replace(schedule().bands[1], rate_rps_low=0, rate_rps_high=math.inf)
    assert load_ratio(Schedule(bands=(endless,)), _load(50)) is None


@pytest.mark.parametrize(
    ("ratios", "count"),
    [
        ([0.0], 1),
        ([1.0], 1),
        ([1.01], 2),
        ([0.1] * 10, 1),
        ([0.4, 0.4, 0.4], 2),
        ([2.0, None], None),
        ([], None),
    ],
)
def test_engines_are_as_many_as_hold_all_the_load(
    ratios: list[float | None], count: int | None
) -> None:
    assert desired_replicas(ratios) == count
