"""Memory on large pages holds what it held."""

from __future__ import annotations

import numpy as np

from engine.kernels.huge_pages import HUGE_BYTES, collapse


def test_what_is_moved_to_large_pages_stays_the_same() -> None:
    arrays = [np.arange(3 * HUGE_BYTES // 8 + 5), np.arange(HUGE_BYTES // 8), np.arange(10)]
    before = [array.copy() for array in arrays]
    collapse([(array.ctypes.data, array.nbytes) for array in arrays])
    for array, was in zip(arrays, before, strict=True):
        assert np.array_equal(array, was)
    arrays[0][:] = 7  # and can be written
    assert (arrays[0] == 7).all()
