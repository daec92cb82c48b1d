"""The law of block-scaled products: what is shipped is what is fitted, and holds elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from tuner.calibration.block_scaled import fit_block_scaled, held_out_rows, law_seconds
from tuner.hardware.block_scaled import BLOCK_SCALED


def test_the_shipped_law_is_the_fitted_one() -> None:
    fitted = fit_block_scaled()
    assert pytest.approx(fitted.slowdown, rel=1e-2) == BLOCK_SCALED.slowdown
    assert pytest.approx(fitted.piece_clocks, rel=1e-2) == BLOCK_SCALED.piece_clocks


def test_it_foresees_a_shape_and_a_version_that_it_never_saw() -> None:
    shapes, seconds = held_out_rows()
    errors = np.abs(law_seconds(BLOCK_SCALED, shapes) / seconds - 1)
    assert np.median(errors) < 0.06
    assert errors.max() < 0.12
