"""Sampling values: what is refused, by name, and what that leaves to the ranks."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.spec.errors import RequestError
from engine.spec.request import SamplingParams


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 100.5),
        ("temperature", 1e300),
        ("temperature", math.inf),
        ("temperature", math.nan),
        ("top_k", 3_000_000_000),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 1e-300),
        ("repetition_penalty", 1e-40),
        ("repetition_penalty", 0.009),
        ("repetition_penalty", 101.0),
        ("repetition_penalty", math.nan),
    ],
)
def test_a_value_that_sampling_could_not_bear_is_refused_and_named(name: str, value: float) -> None:
    with pytest.raises(RequestError, match=re.escape(f"{name}={value}: must be in")):
        SamplingParams(**{name: value})


@pytest.mark.parametrize("token", [-1, 2**31, 2**40])
def test_a_token_id_that_ranks_could_not_hold_is_refused_and_named(token: int) -> None:
    with pytest.raises(RequestError, match=f"stop_token_ids: token id {token} is outside"):
        SamplingParams(stop_token_ids=(3, token))
    with pytest.raises(RequestError, match=f"logit_bias: token id {token} is outside"):
        SamplingParams(logit_bias=((3, 1.0), (token, 1.0)))


def test_the_ends_of_every_range_are_allowed() -> None:
    ids = (0, 2**31 - 1)
    SamplingParams(temperature=0.0, repetition_penalty=0.01, stop_token_ids=ids)
    SamplingParams(temperature=100.0, repetition_penalty=100.0, logit_bias=((0, 1.0), (ids[1], -1)))


@given(
    name=st.sampled_from(["temperature", "repetition_penalty", "top_p", "min_p"]),
    value=st.floats() | st.floats(0, 2),
)
def test_whatever_is_allowed_is_still_finite_as_ranks_hold_it(name: str, value: float) -> None:
    values: dict[str, Any] = {name: value}
    try:
        SamplingParams(**values)
    except RequestError as error:
        refusal = str(error)
    else:
        narrow = np.float32(value)
        assert np.isfinite(narrow)
        assert name != "repetition_penalty" or np.isfinite(np.float32(1) / narrow)
        return
    assert str(value) in refusal
