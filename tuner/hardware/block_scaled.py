"""Products whose weights hold a scale per block of 128x128, as Qwen3's fp8 checkpoints do.

A multiprocessor adds up one tile of the result, 128 inputs at a time, and after each such piece it
multiplies by the scales outside of its tensor cores. So a product takes at least as many pieces one
after the other as its tiles need rounds over the multiprocessors. Two kernels are known, each by a
law of its own: :class:`CutlassLaw` and :class:`DeepGemmLaw`. Both are fitted by
``python -m tuner.calibration.block_scaled`` on published times on Hopper.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

import numpy as np

from tuner.hardware.physics import FloatArray

BLOCK = 128


@dataclass(frozen=True, kw_only=True)
class Chip:
    """What the laws ask of a device: its multiprocessors, their clock, and the data sheet's
    bandwidth of its memory."""

    num_sms: int
    clock_hz: float
    bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class CutlassLaw:
    """vLLM's CUTLASS kernel: where a product has many pieces, they take ``slowdown`` times as long
    as those of weights with one scale. ``piece_clocks``: clocks that one piece of one tile takes a
    multiprocessor. ``call_s``: of a call."""

    slowdown: float
    piece_clocks: float
    call_s: float

    def seconds(
        self, one_scale_s: FloatArray, *, m: FloatArray, n: FloatArray, k: FloatArray, chip: Chip
    ) -> FloatArray:
        """f8[R] of ``[m, k] @ [k, n]``, which take ``one_scale_s`` f8[R] with one scale a
        matrix."""
        tiles = np.ceil(m / BLOCK) * np.ceil(n / BLOCK)
        pieces = np.ceil(tiles / chip.num_sms) * np.ceil(k / BLOCK)
        in_turn_s = self.call_s + pieces * self.piece_clocks / chip.clock_hz
        return np.maximum(self.slowdown * one_scale_s, in_turn_s)


@dataclass(frozen=True, kw_only=True)
class DeepGemmLaw:
    """DeepGEMM's kernel, which TensorRT-LLM has on Hopper. It reads with ``bandwidth`` of the data
    sheet's; a piece of a full tile takes ``piece_clocks``, half a tile half as many and none less
    than ``least_clocks``; results are written when a tile is done, beside nothing else. A pass of
    its own rounds activations before. ``call_s``: of either call."""

    bandwidth: float
    piece_clocks: float
    least_clocks: float
    call_s: float

    def seconds(self, *, m: FloatArray, n: FloatArray, k: FloatArray, chip: Chip) -> FloatArray:
        """f8[R] of ``[m, k] @ [k, n]`` with the pass that rounds 16-bit activations."""
        moved = 3.0 * m * k / (self.bandwidth * chip.bytes_per_s)
        return self.call_s + moved + self.product_s(m=m, n=n, k=k, chip=chip)

    def product_s(self, *, m: FloatArray, n: FloatArray, k: FloatArray, chip: Chip) -> FloatArray:
        """f8[R] of the product alone."""
        bytes_per_s = self.bandwidth * chip.bytes_per_s
        tile_share = np.where(m <= BLOCK / 2, 0.5, 1.0)
        tiles = np.ceil(m / BLOCK) * np.ceil(n / BLOCK) / chip.num_sms
        # Where there are fewer tiles than multiprocessors they are made smaller.
        rounds = np.where(tiles < 1.0, tiles, np.ceil(tiles))
        clocks = np.maximum(self.least_clocks, rounds * tile_share * self.piece_clocks)
        in_turn_s = np.ceil(k / BLOCK) * clocks / chip.clock_hz
        read_s, written_s = (m + n) * k / bytes_per_s, 2.0 * m * n / bytes_per_s
        return np.asarray(self.call_s + np.maximum(read_s, in_turn_s) + written_s)


# The call is not fitted: a kernel's start and end, as of other products.
CUTLASS = CutlassLaw(slowdown=1.463, piece_clocks=1027.0, call_s=5e-6)
DEEP_GEMM = DeepGemmLaw(bandwidth=0.802, piece_clocks=933.0, least_clocks=278.0, call_s=1.5e-6)


class BlockKernel(StrEnum):
    """Who multiplies block-scaled weights."""

    CUTLASS = "cutlass"
    DEEP_GEMM = "deep_gemm"

    def seconds(
        self, one_scale_s: FloatArray, *, m: FloatArray, n: FloatArray, k: FloatArray, chip: Chip
    ) -> FloatArray:
        """f8[R] of ``[m, k] @ [k, n]``, which take ``one_scale_s`` f8[R] with one scale a
        matrix."""
        match self:
            case BlockKernel.CUTLASS:
                return CUTLASS.seconds(one_scale_s, m=m, n=n, k=k, chip=chip)
            case BlockKernel.DEEP_GEMM:
                return DEEP_GEMM.seconds(m=m, n=n, k=k, chip=chip)
            case _ as other:
                assert_never(other)
