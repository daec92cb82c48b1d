"""The laws of block-scaled products: what is shipped is what is fitted, and holds elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from tuner.calibration.block_scaled import (
    deep_gemm_rows,
    deep_gemm_seconds,
    fit_block_scaled,
    fit_deep_gemm,
    held_out_rows,
    law_seconds,
)
from tuner.hardware import parse_hardware
from tuner.hardware.block_scaled import CUTLASS, DEEP_GEMM
from tuner.hardware.physics import FloatArray


def test_the_shipped_laws_are_the_fitted_ones() -> None:
    cutlass, deep_gemm = fit_block_scaled(), fit_deep_gemm()
    assert pytest.approx(cutlass.slowdown, rel=1e-2) == CUTLASS.slowdown
    assert pytest.approx(cutlass.piece_clocks, rel=1e-2) == CUTLASS.piece_clocks
    for name in ("bandwidth", "piece_clocks", "least_clocks"):
        assert getattr(deep_gemm, name) == pytest.approx(getattr(DEEP_GEMM, name), rel=1e-2)


def test_cutlass_is_foreseen_at_a_shape_and_a_version_that_it_never_saw() -> None:
    shapes, seconds = held_out_rows()
    errors = np.abs(law_seconds(CUTLASS, shapes) / seconds - 1)
    assert np.median(errors) < 0.06
    assert errors.max() < 0.12


def test_deep_gemms_few_rows_are_within_a_sixth_and_many_between_two_publications() -> None:
    shapes, seconds = deep_gemm_rows()
    errors = deep_gemm_seconds(DEEP_GEMM, shapes) / seconds - 1
    few, many = shapes[:, 0] <= 128, (shapes == (4096, 4096, 7168)).all(axis=1)
    assert np.abs(errors[few]).max() < 0.17
    assert errors[many].min() < 0 < errors[many].max()


def test_another_chip_has_times_of_its_own() -> None:
    """Reading follows the memory, multiplying the clock."""
    shapes, _ = deep_gemm_rows()

    def seconds(name: str) -> FloatArray:
        m, n, k = shapes.T
        return DEEP_GEMM.seconds(m=m, n=n, k=k, chip=parse_hardware(name).device.chip)

    ratio = seconds("h200") / seconds("h100")
    assert np.median(ratio[shapes[:, 0] == 64]) < 0.85
    assert ratio[(shapes == (4096, 7168, 16384)).all(axis=1)] > 0.97
