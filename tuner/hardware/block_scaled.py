"""Products whose weights hold a scale per block of 128x128, as Qwen3's fp8 checkpoints do.

A multiprocessor adds up one tile of the result, 128 inputs at a time, and after each such piece it
multiplies by the scales outside of its tensor cores. So a product takes at least as many pieces one
after the other as its tiles need rounds over the multiprocessors; and where it has many, its pieces
take as much longer as :data:`SLOWDOWN` says than those of weights with one scale.

Fitted by ``python -m tuner.calibration.block_scaled`` on published times of vLLM's CUTLASS kernel
on an H100; other kernels are a factor on it (``kernels.fp8_block_gemm`` of a backend).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tuner.hardware.physics import FloatArray

BLOCK = 128


@dataclass(frozen=True, kw_only=True)
class BlockScaledLaw:
    """``slowdown``: over products with one scale. ``piece_clocks``: clocks that one piece of one
    tile takes a multiprocessor. ``call_s``: of a call."""

    slowdown: float
    piece_clocks: float
    call_s: float

    def seconds(
        self,
        one_scale_s: FloatArray,
        *,
        m: FloatArray,
        n: FloatArray,
        k: FloatArray,
        num_sms: int,
        clock_hz: float,
    ) -> FloatArray:
        """f8[R] of ``[m, k] @ [k, n]``, which take ``one_scale_s`` f8[R] with one scale a
        matrix."""
        tiles = np.ceil(m / BLOCK) * np.ceil(n / BLOCK)
        pieces = np.ceil(tiles / num_sms) * np.ceil(k / BLOCK)
        in_turn_s = self.call_s + pieces * self.piece_clocks / clock_hz
        return np.maximum(self.slowdown * one_scale_s, in_turn_s)


# The call is not fitted: a kernel's start and end, as of other products.
BLOCK_SCALED = BlockScaledLaw(slowdown=1.463, piece_clocks=1027.0, call_s=5e-6)
