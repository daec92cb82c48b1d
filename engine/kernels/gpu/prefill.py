"""Attention of new tokens that come in runs, over the paged cache (FlashAttention-2's loop,
arXiv 2307.08691).

A program has one tile: some tokens of one sequence with all query heads that share a KV head, so
that a key is read once for the whole group. Keys behind a token's own position are read only in the
tile's last blocks, where they are masked.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.gpu import overlap
from engine.kernels.gpu.decode import LEAST_ROWS, dot_precision, head_constants, score_scale
from engine.kernels.gpu.overlap import wait_for_previous
from engine.kernels.gpu.tables import DeviceTables
from engine.kernels.kv_cache import LayerCache
from engine.kernels.layer import HeadShape

# Rows of a tile: tokens times query heads of a KV head.
TILE_ROWS = 128
AT_ONCE = 64
NUM_WARPS = 4
NUM_STAGES = 3


def tile_tokens(num_q: int, num_kv: int) -> int:
    """New tokens of one tile."""
    return max(1, TILE_ROWS // (num_q // num_kv))


# Triton has no types, and reads annotations as its own.
@triton.jit  # type: ignore[untyped-decorator]
def _advance(  # type: ignore[no-untyped-def]
    answer,
    weight,
    best,
    q,
    keys_ptr,
    values_ptr,
    blocks_ptr,
    positions,
    begin,
    end,
    last,
    head,
    scale,
    is_masked: tl.constexpr,
    num_kv: tl.constexpr,
    head_dim: tl.constexpr,
    block_size: tl.constexpr,
    dims_block: tl.constexpr,
    at_once: tl.constexpr,
    precision: tl.constexpr,
):
    """Take in the context's tokens from ``begin`` to ``end``, ``at_once`` at a time."""
    dims = tl.arange(0, dims_block)
    for start in range(begin, end, at_once):
        tokens = start + tl.arange(0, at_once)
        is_here = tokens < last
        block = tl.load(blocks_ptr + tokens // block_size, mask=is_here, other=0)
        slots = block.to(tl.int64) * block_size + tokens % block_size
        at = ((slots * num_kv + head) * head_dim)[:, None] + dims[None, :]
        if is_masked or dims_block > head_dim:
            is_read = is_here[:, None] & (dims < head_dim)[None, :]
            k = tl.load(keys_ptr + at, mask=is_read, other=0.0)
            v = tl.load(values_ptr + at, mask=is_read, other=0.0)
        else:
            k = tl.load(keys_ptr + at)
            v = tl.load(values_ptr + at)
        scores = tl.dot(q, tl.trans(k), input_precision=precision) * scale
        if is_masked:
            scores = tl.where(tokens[None, :] <= positions[:, None], scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, axis=1))
        shares = tl.exp2(scores - higher[:, None])
        kept = tl.exp2(best - higher)
        weight = weight * kept + tl.sum(shares, axis=1)
        answer = answer * kept[:, None]
        answer = tl.dot(shares.to(v.dtype), v, answer, input_precision=precision)
        best = higher
    return answer, weight, best


@triton.jit  # type: ignore[untyped-decorator]
def _prefill_kernel(  # type: ignore[no-untyped-def]
    qkv_ptr,
    keys_ptr,
    values_ptr,
    out_ptr,
    tiles_ptr,
    seqs_ptr,
    blocks_ptr,
    scale,
    num_q: tl.constexpr,
    num_kv: tl.constexpr,
    head_dim: tl.constexpr,
    block_size: tl.constexpr,
    tile: tl.constexpr,
    rows: tl.constexpr,
    dims_block: tl.constexpr,
    at_once: tl.constexpr,
    precision: tl.constexpr,
    is_overlapped: tl.constexpr,
):
    wait_for_previous(is_overlapped)
    place, head = tl.program_id(1), tl.program_id(0)
    seq = tl.load(tiles_ptr + 2 * place)
    if seq < 0:
        return
    offset = tl.load(tiles_ptr + 2 * place + 1)
    first_row = tl.load(seqs_ptr + 4 * seq).to(tl.int64) + offset
    query_len = tl.load(seqs_ptr + 4 * seq + 1)
    total = tl.load(seqs_ptr + 4 * seq + 2)
    blocks_ptr += tl.load(seqs_ptr + 4 * seq + 3)
    count = tl.minimum(tile, query_len - offset)
    first_position = total - query_len + offset

    group: tl.constexpr = num_q // num_kv
    lanes = tl.arange(0, rows)
    token = lanes // group
    dims = tl.arange(0, dims_block)
    inside = (token < count)[:, None] & (dims < head_dim)[None, :]
    q_heads = head * group + lanes % group
    at = (first_row + token) * (num_q + 2 * num_kv) + q_heads
    q = tl.load(qkv_ptr + at[:, None] * head_dim + dims[None, :], mask=inside, other=0.0)
    positions = first_position + tl.minimum(token, count - 1)

    best = tl.full([rows], float("-inf"), tl.float32)
    weight = tl.zeros([rows], tl.float32)
    answer = tl.zeros([rows, dims_block], tl.float32)
    last = first_position + count
    # Every token of the tile sees what lies before its first one.
    seen_by_all = (first_position + 1) // at_once * at_once
    answer, weight, best = _advance(
        answer, weight, best, q, keys_ptr, values_ptr, blocks_ptr, positions,
        0, seen_by_all, last, head, scale, False, num_kv, head_dim, block_size, dims_block,
        at_once, precision,
    )  # fmt: skip
    answer, weight, best = _advance(
        answer, weight, best, q, keys_ptr, values_ptr, blocks_ptr, positions,
        seen_by_all, last, last, head, scale, True, num_kv, head_dim, block_size, dims_block,
        at_once, precision,
    )  # fmt: skip
    answer = answer / weight[:, None]
    at = (first_row + token) * num_q + q_heads
    tl.store(
        out_ptr + at[:, None] * head_dim + dims[None, :],
        answer.to(out_ptr.dtype.element_ty),
        mask=inside,
    )


def prefill(
    qkv: Tensor, out: Tensor, *, cache: LayerCache, tables: DeviceTables, shape: HeadShape
) -> None:
    """Fill the rows of ``out[rows, num_q * hd]`` that belong to the step's tiles.

    ``qkv`` and ``cache`` are as :func:`engine.kernels.gpu.heads.place_heads` left them. Scores,
    shares and sums are float32; shares meet the values in the values' dtype.
    """
    num_q, num_kv, head_dim = shape.num_q, shape.cache.num_kv_heads, shape.cache.head_dim
    if not tables.shape.num_tiles:
        return
    is_wide = qkv.dtype is torch.float32
    tile = tables.shape.tile_tokens
    _prefill_kernel[(num_kv, tables.shape.num_tiles)](
        qkv,
        cache.keys,
        cache.values,
        out,
        tables.tiles,
        tables.seqs,
        tables.blocks,
        score_scale(head_dim),
        **head_constants(shape),
        tile=tile,
        rows=max(LEAST_ROWS, triton.next_power_of_2(tile * (num_q // num_kv))),
        at_once=32 if is_wide else AT_ONCE,
        precision=dot_precision(qkv.dtype),
        num_warps=NUM_WARPS,
        num_stages=1 if is_wide else NUM_STAGES,
        **overlap.overlapped(qkv),
    )
