"""Greedy tokens compiled are those of the rule."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.kernels import native_build
from engine.sampling.largest import Largest
from engine.sampling.rules import have_finite, largest_ids
from engine.spec.steps import NO_TOKEN

NUMBERS = st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -1e30, 1e-30, 0.0, -0.0, 2.5, 2.5])
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def by_rule(logits: Tensor) -> list[int]:
    ids = largest_ids(logits)
    return ids.masked_fill(~have_finite(logits, ids), NO_TOKEN).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None)
@given(
    numbers=st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=1, max_size=4),
    width=st.sampled_from([1, 7, 32, 64, 100, 259]),
    places=st.lists(st.integers(0, 258), min_size=3, max_size=3),
    lowest=st.sampled_from([-1e30, -math.inf, math.nan, -3.0]),
)
def test_any_row_is_answered_by_the_rule(
    dtype: torch.dtype,
    numbers: list[list[float]],
    width: int,
    places: list[int],
    lowest: float,
) -> None:
    rows = torch.full((len(numbers), width + 3), lowest, dtype=torch.float64)
    for row, some in zip(rows, numbers, strict=True):
        for place, number in zip(places, some, strict=True):
            row[place % width] = number
    logits = rows.to(dtype)[:, :width]  # rows apart
    assert Largest()(logits).tolist() == by_rule(logits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_many_wide_rows_too(dtype: torch.dtype, threads: int) -> None:
    torch.set_num_threads(threads)
    logits = torch.randn(9, 32_000, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[3], logits[4, 31_999] = math.nan, 50.0
    assert Largest()(logits).tolist() == by_rule(logits)


def test_without_a_compiler_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native_build.NO_COMPILER_VARIABLE, "1")
    logits = torch.tensor([[1.0, math.inf, 3.0], [math.nan, -math.inf, math.nan]])
    assert Largest()(logits).tolist() == by_rule(logits) == [1, NO_TOKEN]
