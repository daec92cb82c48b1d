"""What is suggested for a wrong name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.spec.names import did_you_mean, find_nearest

DEVICES = ("a100", "h100", "h200", "mi325x")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("h2000", "h200"), ("H100-SXM", "h100"), ("mi325", "mi325x"), ("A10O", "a100")],
)
def test_the_nearest_known_name_is_found_in_any_case(wrong: str, right: str) -> None:
    assert find_nearest(wrong, DEVICES) == right
    assert did_you_mean(wrong, DEVICES) == f" (did you mean {right!r}?)"


def test_letters_that_changed_places_are_found_in_short_words_too() -> None:
    assert find_nearest("pt", ("dp", "pp", "sp", "tp", "shift")) == "tp"
    assert find_nearest("", ("dp", "")) is None


def test_a_name_like_no_other_has_no_nearest() -> None:
    assert did_you_mean("tpu", DEVICES) == ""
    assert find_nearest("h200" * 100_000, DEVICES) is None


@given(st.text(max_size=20), st.lists(st.text(max_size=8), max_size=5))
def test_only_known_names_are_suggested(word: str, known: list[str]) -> None:
    assert find_nearest(word, known) in (None, *known)
