"""What an operator asks of a device, as arrays: seconds at peak, and the variables that efficiency
depends on. One definition serves the fit and the run.

Variables are logarithms of sizes or ratios to the device (waves of tiles over its
multiprocessors), so what was learned on one device can be carried to another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
ACTIVATION_BYTES = 2
HEAD_DIM = 128  # of every model that was measured
QUERY_TILE = 128
ROW_TILE = 256
ALIGNED_ROWS = 16  # kernels for narrow operands are picked by how rows divide
US = 1e-6


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Data-sheet peaks of one device in one number format, and its multiprocessors."""

    flops_per_s: float
    bytes_per_s: float
    num_sms: int


@dataclass(frozen=True, kw_only=True)
class Work:
    """R operator calls: seconds at each peak f8[R] and the variables f8[R, V].

    The first ``num_sizes`` variables are sizes: outside their range a fit is not trusted.
    """

    flop_s: FloatArray
    byte_s: FloatArray
    variables: FloatArray
    num_sizes: int

    def where(self, mask: npt.NDArray[np.bool_]) -> Work:
        """The calls of ``mask`` only."""
        return Work(
            flop_s=self.flop_s[mask],
            byte_s=self.byte_s[mask],
            variables=self.variables[mask],
            num_sizes=self.num_sizes,
        )


def gemm_work(
    peaks: Peaks,
    m: FloatArray,
    n: FloatArray,
    k: FloatArray,
    *,
    operand_bytes: int,
    weight_bytes: float | None = None,
) -> Work:
    """``[m, k] @ [k, n]``; operands of ``operand_bytes`` each (weights of ``weight_bytes``, where
    they differ), a result of 2.

    The measured times of narrow operands include the pass that makes them from 2-byte activations.
    """
    flop_s = 2.0 * m * n * k / peaks.flops_per_s
    weights = operand_bytes if weight_bytes is None else weight_bytes
    moved = weights * n * k + operand_bytes * m * k + ACTIVATION_BYTES * m * n
    if operand_bytes < ACTIVATION_BYTES:
        moved = moved + (ACTIVATION_BYTES + operand_bytes) * m * k
    byte_s = moved / peaks.bytes_per_s
    sms = peaks.num_sms
    waves = [_up(m, tm) * _up(n, tn) / sms for tm, tn in ((128, 128), (64, 128), (128, 256))]
    return _work(
        flop_s,
        byte_s,
        sizes=(np.log(m), np.log(n), np.log(k)),
        others=(
            np.log(waves[0]),
            *(np.log(np.ceil(w) / w) for w in waves),
            np.log(_up(m, ROW_TILE) * ROW_TILE / m),
            np.gcd(m.astype(np.int64), ALIGNED_ROWS).astype(np.float64),
        ),
    )


def prefill_work(
    peaks: Peaks,
    *,
    seqs: FloatArray,
    queries: FloatArray,
    prefix: FloatArray,
    heads: FloatArray,
    kv_heads: FloatArray,
) -> Work:
    """Causal attention of ``queries`` new tokens in each of ``seqs`` sequences, over ``prefix``
    cached tokens each."""
    keys = prefix + (queries + 1) / 2  # what one query sees on average
    flop_s = 4.0 * seqs * queries * keys * HEAD_DIM * heads / peaks.flops_per_s
    channels = 2 * heads * queries + 2 * kv_heads * (prefix + queries)
    byte_s = ACTIVATION_BYTES * HEAD_DIM * seqs * channels / peaks.bytes_per_s
    waves = seqs * heads * _up(queries, QUERY_TILE) / peaks.num_sms
    return _work(
        flop_s,
        byte_s,
        sizes=(np.log(seqs * heads), np.log(keys), np.log(queries)),
        others=(
            np.log(heads),
            np.log(kv_heads),
            np.log(heads / kv_heads),
            (heads > kv_heads).astype(np.float64),
            np.log(waves),
            np.log(np.ceil(waves) / waves),
        ),
    )


def decode_work(
    peaks: Peaks,
    *,
    seqs: FloatArray,
    context: FloatArray,
    heads: FloatArray,
    kv_heads: FloatArray,
    kv_share: float = 1.0,
) -> Work:
    """Attention of one new token in each of ``seqs`` sequences over ``context`` tokens each, kept
    in ``kv_share`` of the bytes of activations."""
    flop_s = 4.0 * seqs * context * HEAD_DIM * heads / peaks.flops_per_s
    channels = 2 * heads + 2 * kv_share * kv_heads * context
    byte_s = ACTIVATION_BYTES * HEAD_DIM * seqs * channels / peaks.bytes_per_s
    waves = seqs * kv_heads / peaks.num_sms
    return _work(
        flop_s,
        byte_s,
        # A long cache of few sequences costs like a shorter one of more sequences, so the size to
        # trust is bytes, not length.
        sizes=(np.log(seqs), np.log(waves), np.log(byte_s / US)),
        others=(
            np.log(context),
            np.log(heads),
            np.log(kv_heads),
            np.log(heads / kv_heads),
            (heads > kv_heads).astype(np.float64),
            np.log(np.ceil(waves) / waves),
        ),
    )


def _up(x: FloatArray, tile: int) -> FloatArray:
    return np.asarray(np.ceil(x / tile))


def _work(
    flop_s: FloatArray,
    byte_s: FloatArray,
    *,
    sizes: tuple[FloatArray, ...],
    others: tuple[FloatArray, ...],
) -> Work:
    shared = (np.log(flop_s / byte_s), np.log((flop_s + byte_s) / US))
    return Work(
        flop_s=flop_s,
        byte_s=byte_s,
        variables=np.column_stack([*sizes, *others, *shared]),
        num_sizes=len(sizes),
    )
