"""Shares and percentiles from buckets lie where the values were, whatever these were."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.errors import PolicyInputError
from policies.histogram import Bounded, Histogram

EDGES = (1.0, 5.0, 10.0, 50.0)
FEW = settings(max_examples=30)


def histogram_of(values: list[float], edges: tuple[float, ...] = EDGES) -> Histogram:
    ends = (-1.0, *edges, float("inf"))
    counts = tuple(float(sum(low < v <= high for v in values)) for low, high in pairwise(ends))
    return Histogram(edges=edges, counts=counts, total=float(sum(values)))


VALUES = st.lists(st.integers(0, 80).map(float), min_size=1, max_size=60)


@FEW
@given(values=VALUES, bound=st.integers(0, 90).map(float))
def test_the_share_within_a_bound_lies_between_its_ends(values: list[float], bound: float) -> None:
    found = histogram_of(values).share_within(bound)
    assert found is not None
    true = float(np.mean([v <= bound for v in values]))
    assert found.low - 1e-9 <= true <= found.high + 1e-9
    assert found.low <= found.value <= found.high
    if bound in EDGES:
        assert found.low == found.high


@FEW
@given(values=VALUES, percent=st.sampled_from([50.0, 90.0, 95.0, 99.0, 100.0]))
def test_a_percentile_lies_in_its_bucket(values: list[float], percent: float) -> None:
    found = histogram_of(values).percentile(percent)
    assert found is not None
    true = float(np.percentile(values, percent, method="inverted_cdf"))
    assert found.low <= true <= found.high
    assert found.low <= found.value <= found.high


@FEW
@given(values=VALUES, percent=st.sampled_from([50.0, 95.0]), bound=st.sampled_from(EDGES[:-1]))
def test_percentile_and_share_say_the_same(
    values: list[float], percent: float, bound: float
) -> None:
    histogram = histogram_of(values)
    share, at = histogram.share_within(bound), histogram.percentile(percent)
    assert share is not None
    assert at is not None
    if abs(share.value - percent / 100) > 1e-9:
        assert (share.value > percent / 100) == (at.value <= bound)


@FEW
@given(first=VALUES, second=VALUES)
def test_what_came_since_is_what_is_added(first: list[float], second: list[float]) -> None:
    before, both = histogram_of(first), histogram_of(first + second)
    assert both.since(before) == histogram_of(second)
    assert before.plus(histogram_of(second)) == both


def test_counting_anew_or_other_edges_are_no_difference() -> None:
    many, few = histogram_of([2.0, 3.0, 60.0]), histogram_of([2.0])
    assert few.since(many) is None
    assert many.since(histogram_of([2.0], edges=(1.0, 5.0))) is None


def test_nothing_counted_is_no_share() -> None:
    empty = histogram_of([])
    assert (empty.share_within(5.0), empty.percentile(50.0), empty.mean) == (None, None, None)


def test_above_the_last_edge_nobody_knows() -> None:
    found = histogram_of([2.0, 60.0, 70.0, 80.0]).share_within(65.0)
    assert found == Bounded(low=0.25, value=0.25, high=1.0)


@pytest.mark.parametrize(
    ("edges", "counts"),
    [((2.0, 1.0), (1.0, 1.0, 1.0)), ((1.0,), (1.0,)), ((1.0,), (-1.0, 1.0)),
     ((float("inf"),), (1.0, 1.0)), ((1.0,), (float("nan"), 1.0))],
)  # fmt: skip
def test_what_cannot_be_is_refused(edges: tuple[float, ...], counts: tuple[float, ...]) -> None:
    with pytest.raises(PolicyInputError):
        Histogram(edges=edges, counts=counts, total=1.0)
