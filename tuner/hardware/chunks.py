"""Prefill chunks over cached tokens: the fitted time without a prefix, and what the prefix adds.

The published calls have no prefix, so the fit has seen no call of few queries and many keys. A
prefix adds a rectangle of unmasked work with tiles as long as those of long prompts. It runs at the
share of peak that the fit gives for long prompts, as far as the tiles fill the device. Too few
tiles are split along the keys and combined by a second kernel (flash decoding).
"""

from __future__ import annotations

import numpy as np

from tuner.hardware.curves import OperatorCurve
from tuner.hardware.physics import (
    ACTIVATION_BYTES,
    HEAD_DIM,
    QUERY_TILE,
    FloatArray,
    Peaks,
    prefill_work,
)

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
    heads: float,
    kv_heads: float,
    kv_share: float = 1.0,
) -> FloatArray:
    """Causal attention of ``queries`` new tokens of each of ``seqs`` sequences over ``prefix``
    cached tokens each, which are kept in ``kv_share`` of the bytes of activations; ``kernel_s`` is
    what a second kernel costs. Shapes broadcast.

    The curve is asked once per number of sequences and queries, however many prefixes there are.
    """
    without_s = _prompt_seconds(curve, peaks, seqs, queries, heads, kv_heads)
    added_s = _prefix_seconds(
        peaks,
        share=_long_share(curve, peaks, heads, kv_heads),
        kernel_s=kernel_s,
        seqs=seqs,
        queries=queries,
        prefix=prefix,
        heads=heads,
        kv_heads=kv_share * kv_heads,
    )
    return np.asarray(without_s + added_s)


def _prefix_seconds(
    peaks: Peaks,
    *,
    share: float,
    kernel_s: float,
    seqs: FloatArray,
    queries: FloatArray,
    prefix: FloatArray,
    heads: float,
    kv_heads: float,
) -> FloatArray:
    """What the prefix adds if long prompts reach ``share`` of the peak."""
    # Tiles run in waves over the multiprocessors; ``fill`` is the share of them that work. Fewer
    # tiles than multiprocessors are split along the keys.
    tiles = seqs * heads * np.ceil(queries / QUERY_TILE)
    splits = np.maximum(1.0, np.floor(peaks.num_sms / tiles))
    splits = np.minimum(splits, np.maximum(1.0, np.floor((prefix + queries) / QUERY_TILE)))
    waves = tiles * splits / peaks.num_sms
    fill = waves / np.ceil(waves)
    flop_s = 4.0 * seqs * queries * prefix * HEAD_DIM * heads / peaks.flops_per_s
    bytes_per_s = peaks.bytes_per_s * BYTE_SHARE
    memory_s = ACTIVATION_BYTES * 2 * seqs * kv_heads * prefix * HEAD_DIM / bytes_per_s
    partial = splits * seqs * queries * heads * (HEAD_DIM + 1)
    combine_s = kernel_s + 2 * PARTIAL_BYTES * partial / bytes_per_s
    is_split = (splits > 1) & (prefix > 0)
    added_s = np.maximum(flop_s / (fill * share), memory_s)
    return np.asarray(added_s + np.where(is_split, combine_s, 0.0))


def _prompt_seconds(
    curve: OperatorCurve,
    peaks: Peaks,
    seqs: FloatArray,
    queries: FloatArray,
    heads: float,
    kv_heads: float,
) -> FloatArray:
    """Whole prompts, by the fit; of the shape that ``seqs`` and ``queries`` broadcast to."""
    seqs, queries = np.broadcast_arrays(seqs, queries)
    ones = np.ones(seqs.size)
    work = prefill_work(
        peaks,
        seqs=seqs.ravel(),
        queries=queries.ravel(),
        prefix=0.0 * ones,
        heads=heads * ones,
        kv_heads=kv_heads * ones,
    )
    return curve.seconds(work).reshape(seqs.shape)


def _long_share(curve: OperatorCurve, peaks: Peaks, heads: float, kv_heads: float) -> float:
    """Share of the peak that one long prompt with these heads reaches."""
    one, queries = np.ones(1), np.full(1, LONG_QUERIES)
    seconds = _prompt_seconds(curve, peaks, one, queries, heads, kv_heads)
    flops = 4.0 * LONG_QUERIES * (LONG_QUERIES + 1) / 2 * HEAD_DIM * heads
    return float(flops / peaks.flops_per_s / seconds[0])
