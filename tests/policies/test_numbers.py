"""Numbers for readers keep three digits, and rounded bounds stay on the right side."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.constraint import Op
from policies.numbers import share_text, short, short_bound


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (53_220.4, "53200"),
        (4871.3, "4870"),
        (146.9, "147"),
        (39.99, "40"),
        (0.093249, "0.0932"),
        (1.0, "1"),
        (0.0, "0"),
        (1e-7, "0.0000001"),
        (999.6, "1000"),
        (-2.344, "-2.34"),
        (float("inf"), "inf"),
    ],
)
def test_three_digits_and_no_exponent(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(2 / 3, "0.6667"), (0.9996, "0.9996"), (0.99996, "0.99996"), (1.0, "1.0000"), (0.0, "0.0000")],
)
def test_a_share_that_is_nearly_all_is_not_told_as_all(share: float, text: str) -> None:
    assert share_text(share) == text


@given(st.floats(1e-6, 1e12), st.sampled_from(Op))
def test_a_rounded_bound_is_met_by_what_met_the_number(value: float, op: Op) -> None:
    bound = float(short_bound(value, op))
    assert bound >= value if op is Op.AT_MOST else bound <= value
    assert bound == pytest.approx(value, rel=0.011)


@given(st.floats(1e-6, 1e12))
def test_no_number_is_off_by_more_than_half_a_digit(value: float) -> None:
    assert float(short(value)) == pytest.approx(value, rel=0.0051)
