"""Fits on invented devices whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from tuner.calibration.curve_fit import (
    fit_operator,
    fit_roofline,
    fit_size_curve,
    fit_small,
    held_out,
    held_out_logs,
    packed,
)
from tuner.hardware.curves import LEAF_UNIT, OperatorCurve, Roofline
from tuner.hardware.physics import FloatArray, Peaks, Work, gemm_work
from tuner.step_model.boosting import boosted, export_trees

PEAKS = Peaks(flops_per_s=1e15, bytes_per_s=3e12, num_sms=132)
TRUTH = Roofline(call_s=4e-6, flop_share=0.7, byte_share=0.85, sharpness=3.0)


def shapes() -> tuple[FloatArray, FloatArray, FloatArray]:
    sizes = [float(2**i) for i in range(7, 14)]
    m, n, k = np.meshgrid([1.0, 8.0, 64.0, 512.0, 4096.0], sizes, sizes)
    return m.ravel(), n.ravel(), k.ravel()


def work() -> Work:
    m, n, k = shapes()
    return gemm_work(PEAKS, m, n, k, operand_bytes=2)


def test_a_roofline_finds_the_shares_that_made_the_data() -> None:
    calls = work()
    found = fit_roofline(calls, TRUTH.seconds(calls))
    assert found.flop_share == pytest.approx(TRUTH.flop_share, rel=0.02)
    assert found.byte_share == pytest.approx(TRUTH.byte_share, rel=0.02)
    assert found.call_s == pytest.approx(TRUTH.call_s, rel=0.05)


def bent(calls: Work) -> FloatArray:
    """A device whose small products are slower than any roofline says."""
    n = calls.variables[:, 1]
    return np.asarray(TRUTH.seconds(calls) * np.exp(0.4 * np.exp(-((n - 6) ** 2))))


def test_the_correction_learns_what_the_roofline_misses_for_weights_it_never_saw() -> None:
    calls = work()
    seconds = bent(calls)
    _, n, k = shapes()
    groups = (n * 100_000 + k).astype(np.int64)
    corrected = held_out_logs(calls, seconds, groups, lambda w, s: fit_operator(w, s, num_trees=60))
    alone = held_out_logs(
        calls, seconds, groups, lambda w, s: OperatorCurve(roofline=fit_roofline(w, s))
    )
    assert np.abs(corrected).mean() < np.abs(alone).mean() / 2
    report = held_out(corrected, len(np.unique(groups)))
    assert report.median <= report.p90 <= report.p99 <= report.worst
    assert report.groups == 49


def test_the_correction_fades_outside_its_data() -> None:
    calls = work()
    curve = fit_operator(calls, 2.0 * bent(calls) / TRUTH.seconds(calls) * 1e-4, num_trees=20)
    size = np.array([2.0**20])
    far = gemm_work(PEAKS, size, size, size, operand_bytes=2)
    assert curve.seconds(far) == pytest.approx(curve.roofline.seconds(far), rel=1e-6)


def test_packed_trees_answer_as_scikit_learn_does() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(400, 3))
    y = np.sin(x[:, 0]) + x[:, 1] * x[:, 2]
    model = boosted(monotone=None, seed=0, num_trees=25, num_leaves=12).fit(x, y)
    trees = packed(export_trees(model), num_variables=3)
    fresh = rng.normal(size=(200, 3))
    # Every leaf is rounded to a whole unit.
    assert trees.predict(fresh) == pytest.approx(model.predict(fresh), abs=25 * LEAF_UNIT)


def test_a_size_curve_never_falls_and_ignores_an_outlier() -> None:
    size = 2.0 ** np.arange(8, 30)
    seconds = 5e-6 + size / 300e9
    noisy = seconds.copy()
    noisy[5] *= 3
    curve = fit_size_curve(size, noisy)
    asked = [curve.seconds(s) for s in np.geomspace(1, 1e11, 400)]
    assert asked == sorted(asked)
    assert curve.seconds(size[5]) == pytest.approx(seconds[5], rel=0.15)
    assert curve.seconds(size[-1] * 4) == pytest.approx(4 * seconds[-1], rel=0.1)


def test_where_another_algorithm_begins_time_jumps_and_both_sides_are_met() -> None:
    size = 2.0 ** np.arange(8, 31)
    limit = 2.0**23
    seconds = np.where(size < limit, 4e-6 + size / 2e11, 6e-5 + size / 2e11)
    broken, smooth = (fit_size_curve(size, seconds, breaks) for breaks in ((limit,), ()))
    misses = [
        np.abs([np.log(curve.seconds(b) / s) for b, s in zip(size, seconds, strict=True)]).max()
        for curve in (broken, smooth)
    ]
    assert misses[0] < 0.06
    assert misses[1] > 3 * misses[0]
    asked = [broken.seconds(s) for s in np.geomspace(1, 1e11, 400)]
    assert asked == sorted(asked)


def test_a_break_beyond_the_sizes_changes_nothing() -> None:
    size = 2.0 ** np.arange(8, 20)
    seconds = 4e-6 + size / 2e11
    assert fit_size_curve(size, seconds, (2.0**30,)) == fit_size_curve(size, seconds)


def test_a_small_operation_has_a_fixed_cost_and_a_bandwidth() -> None:
    num_bytes = 2.0 ** np.arange(10, 28)
    law = fit_small(num_bytes, 6e-6 + num_bytes / 1e12)
    assert law.seconds(1.0) == pytest.approx(6e-6, rel=0.1)
    assert law.seconds(1e9) == pytest.approx(1e9 / 1e12, rel=0.1)
