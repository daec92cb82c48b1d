from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tuner.profiles import operator_rows
from tests.tuner.worlds import SMALL
from tuner.step_model.operator_fit import non_negative_fit, operator_table
from tuner.step_model.operators import Curve
from tuner.work.counts import CollectiveKind, GemmShape, layer_shapes


@settings(max_examples=30, deadline=None)
@given(
    truth=st.lists(st.floats(1e-9, 1e3), min_size=3, max_size=3),
    seed=st.integers(0, 100),
)
def test_known_positive_coefficients_are_found_whatever_their_size(
    truth: list[float], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.uniform(0.1, 1.0, size=(60, 3)) / np.array(truth)
    y = x @ np.array(truth)
    assert non_negative_fit(x, y) == pytest.approx(truth, rel=1e-4)


def test_a_term_that_would_be_negative_is_zero() -> None:
    x = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    coefficients = non_negative_fit(x, np.array([3.0, 2.0, 1.0]))
    assert np.all(coefficients >= 0)
    assert coefficients[1] == 0


def test_a_prior_decides_what_the_data_does_not() -> None:
    x = np.array([[1.0, 0.0], [2.0, 0.0]])
    fitted = non_negative_fit(
        np.hstack([x, x[:, :1]]), np.array([2.0, 4.0]), prior=np.array([1.0, 1.0, 1.0]),
        prior_weight=0.01,
    )  # fmt: skip
    assert fitted[0] == pytest.approx(1.0, rel=0.05)
    assert fitted[2] == pytest.approx(1.0, rel=0.05)


def test_measured_products_are_looked_up_and_others_follow_the_law() -> None:
    table = operator_table(operator_rows())
    measured = layer_shapes(SMALL, 1).qkv
    row = next(r for r in operator_rows().gemms if (r.m, r.n, r.k) == (64, measured.n, measured.k))
    assert table.gemm_curve(measured, 1).at(64) == row.seconds
    unseen = table.gemm_curve(GemmShape(n=2 * measured.n, k=measured.k), 1).at(256)
    assert unseen == pytest.approx(2.0 * 256 * 2 * measured.n * measured.k / 50e9, rel=0.3)


def test_two_ranks_at_work_are_slower_each() -> None:
    table = operator_table(operator_rows())
    gemm = layer_shapes(SMALL, 2).down
    assert table.gemm_curve(gemm, 2).at(64) > table.gemm_curve(gemm, 1).at(64)
    assert table.gemm_curve(gemm, 8) == table.gemm_curve(gemm, 2)


def test_more_members_than_measured_pay_for_more_hops() -> None:
    table = operator_table(operator_rows())
    two, eight = (table.collective_law(CollectiveKind.ALL_REDUCE, n) for n in (2, 8))
    assert (two.hops, eight.hops) == (1, 7)


@given(st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=6), st.floats(0, 1e5))
def test_a_curve_is_never_negative_and_grows_beyond_its_points(ys: list[float], x: float) -> None:
    curve = Curve(x=tuple(float(4**i) for i in range(len(ys))), y=tuple(ys))
    assert curve.at(x) >= 0
    last = curve.x[-1]
    assert curve.at(4 * last) > curve.at(last)
