"""Prefill chunks over cached tokens: the fitted time without a prefix, and what the prefix adds.

The published calls have no prefix, so the fit knows no call of few queries and many keys. What a
prefix adds is a rectangle of unmasked work, whose tiles are as long as those of long prompts: it
runs at the share of peak that the fit gives for those, as far as the tiles fill the device. Too
few tiles are split along the keys and combined by a second kernel (flash decoding).
"""

from __future__ import annotations

import numpy as np

from tuner.hardware.curves import OperatorCurve
from tuner.hardware.physics import ACTIVATION_BYTES, QUERY_TILE, FloatArray, Peaks, prefill_work

LONG_QUERIES = 16_384.0  # the longest prompts measured
PARTIAL_BYTES = 4  # parts of split tiles are kept in fp32
BYTE_SHARE = 0.8  # of the memory's bandwidth, in long reads


def chunk_seconds(
    curve: OperatorCurve,
    peaks: Peaks,
    *,
    kernel_s: float,
    seqs: FloatArray,
    queries: FloatArray,
    prefix: FloatArray,
    heads: FloatArray,
    kv_heads: FloatArray,
    head_dim: int = 128,
) -> FloatArray:
    """f8[R]: causal attention of ``queries`` new tokens of each of ``seqs`` sequences over
    ``prefix`` cached tokens each; ``kernel_s`` is what a second kernel costs."""
    work = prefill_work(
        peaks,
        seqs=seqs,
        queries=queries,
        prefix=np.zeros_like(prefix),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
    )
    tiles = seqs * heads * np.ceil(queries / QUERY_TILE)
    splits = np.maximum(1.0, np.floor(peaks.num_sms / tiles))
    splits = np.minimum(splits, np.maximum(1.0, np.floor((prefix + queries) / QUERY_TILE)))
    waves = tiles * splits / peaks.num_sms
    fill = waves / np.ceil(waves)
    flop_s = 4.0 * seqs * queries * prefix * head_dim * heads / peaks.flops_per_s
    compute_s = flop_s / (fill * _long_share(curve, peaks, heads, kv_heads))
    bytes_per_s = peaks.bytes_per_s * BYTE_SHARE
    keys_and_values = 2 * seqs * kv_heads * prefix * head_dim
    memory_s = ACTIVATION_BYTES * keys_and_values / bytes_per_s
    partial = splits * seqs * queries * heads * (head_dim + 1)
    combine_s = kernel_s + 2 * PARTIAL_BYTES * partial / bytes_per_s
    is_split = (splits > 1) & (prefix > 0)
    added_s = np.maximum(compute_s, memory_s) + np.where(is_split, combine_s, 0.0)
    return np.asarray(curve.seconds(work) + added_s)


def _long_share(
    curve: OperatorCurve, peaks: Peaks, heads: FloatArray, kv_heads: FloatArray
) -> FloatArray:
    """Share of the peak that one long prompt with these heads reaches."""
    same = np.ones_like(heads)
    work = prefill_work(
        peaks,
        seqs=same,
        queries=LONG_QUERIES * same,
        prefix=0.0 * same,
        heads=heads,
        kv_heads=kv_heads,
    )
    return np.asarray(work.flop_s / curve.seconds(work))
