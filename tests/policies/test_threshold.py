"""The shift rule: where base becomes the faster mode, robust to a noisy pair."""

from __future__ import annotations

from itertools import combinations_with_replacement

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.errors import PolicyInputError
from policies.threshold import LadderTimes, StepPair, ladder_thresholds, shift_threshold

SIZES = (1, 16, 64, 128, 256, 512, 1024, 2048)


def pairs(crossing: float, *, sizes: tuple[int, ...] = SIZES) -> list[StepPair]:
    """Two straight lines that cross at ``crossing`` tokens."""
    return [
        StepPair(num_tokens=n, base_ms=10 + 0.01 * n, shift_ms=10 + 0.02 * n - 0.01 * crossing)
        for n in sizes
    ]


def test_the_threshold_is_where_the_lines_cross() -> None:
    assert shift_threshold(pairs(300)) == pytest.approx(300, abs=1)


def test_one_noisy_pair_does_not_move_the_threshold_to_it() -> None:
    noisy = pairs(300)
    noisy[1] = StepPair(num_tokens=16, base_ms=7.9, shift_ms=8.0)
    assert shift_threshold(noisy) == pytest.approx(300, abs=1)


def test_a_mode_that_is_always_faster_has_every_step() -> None:
    assert shift_threshold(pairs(900)[:4]) == 128
    assert shift_threshold(pairs(0)) == 0


@pytest.mark.parametrize(
    "bad",
    [
        [],
        [StepPair(num_tokens=0, base_ms=1, shift_ms=1)],
        [StepPair(num_tokens=1, base_ms=0, shift_ms=1)],
    ],
)
def test_step_times_that_cannot_be_are_refused(bad: list[StepPair]) -> None:
    with pytest.raises(PolicyInputError, match="shift rule"):
        shift_threshold(bad)


@settings(deadline=None)
@given(
    st.lists(
        st.builds(
            StepPair,
            num_tokens=st.integers(min_value=1, max_value=4096),
            base_ms=st.floats(min_value=0.1, max_value=100),
            shift_ms=st.floats(min_value=0.1, max_value=100),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_no_other_threshold_costs_less(given_pairs: list[StepPair]) -> None:
    def cost(threshold: int) -> float:
        return sum(p.base_ms if p.num_tokens > threshold else p.shift_ms for p in given_pairs)

    threshold = shift_threshold(given_pairs)
    others = [0, *(p.num_tokens for p in given_pairs)]
    assert cost(threshold) <= min(map(cost, others)) * (1 + 1e-9)


def test_a_rung_has_the_steps_at_which_it_is_fastest() -> None:
    """Fixed time falls and time per token rises with fewer slices."""
    times = [
        LadderTimes(num_tokens=n, mode_ms=(10 + 0.04 * n, 20 + 0.02 * n, 40 + 0.01 * n))
        for n in SIZES
    ]
    assert ladder_thresholds(times) == (pytest.approx(500, abs=1), pytest.approx(2000, abs=1))
    slow = [LadderTimes(num_tokens=n, mode_ms=(10 + n, 1e6, 400 + 0.1 * n)) for n in SIZES]
    assert ladder_thresholds(slow) == (pytest.approx(433, abs=1), None)


@settings(deadline=None)
@given(
    st.lists(
        st.builds(
            LadderTimes,
            num_tokens=st.integers(min_value=1, max_value=4096),
            mode_ms=st.tuples(*3 * [st.floats(min_value=0.1, max_value=100)]),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_no_other_thresholds_of_three_modes_cost_less(times: list[LadderTimes]) -> None:
    def cost(low: int, high: int) -> float:
        modes = [0 if t.num_tokens <= low else 1 if t.num_tokens <= high else 2 for t in times]
        return sum(t.mode_ms[mode] for t, mode in zip(times, modes, strict=True))

    first, second = ladder_thresholds(times)
    low = first or 0
    sizes = sorted({0, *(t.num_tokens for t in times)})
    least = min(cost(a, b) for a, b in combinations_with_replacement(sizes, 2))
    assert cost(low, max(low, second or 0)) <= least * (1 + 1e-9)
