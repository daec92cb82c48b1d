"""Attention of sequences with one new token: each context is cut, its parts are read side by side.

As Flash-Decoding does (Dao et al., 2023, split-KV): a program reads one part of one sequence's
context for all query heads that share a KV head, block by block where it lies in the paged cache;
a second kernel joins the parts. Decoding one sequence then keeps the whole device reading.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.gpu import overlap
from engine.kernels.gpu.overlap import wait_for_previous
from engine.kernels.gpu.tables import DeviceTables
from engine.kernels.kv_cache import LayerCache
from engine.kernels.layer import HeadShape

LOG2_OF_E = 1.4426950408889634
# Matrix units take no fewer rows.
LEAST_ROWS = 16
TOKENS_AT_ONCE = 32
# Programs that keep a large device busy: several for each of its 132 multiprocessors.
ENOUGH_PROGRAMS = 1024
MOST_SPLITS = 64
FEWEST_SPLITS = 4
# Reading fewer tokens costs less than joining one part more.
LEAST_CHUNK_TOKENS = 64
NUM_WARPS = 4
NUM_STAGES = 2


# Triton has no types, and reads annotations as its own.
@triton.jit  # type: ignore[untyped-decorator]
def _chunk_of(total, splits: tl.constexpr, least: tl.constexpr):  # type: ignore[no-untyped-def]
    """Tokens of each part of a context, a multiple of ``least``."""
    return tl.cdiv(tl.cdiv(total, splits), least) * least


@triton.jit  # type: ignore[untyped-decorator]
def _decode_kernel(  # type: ignore[no-untyped-def]
    qkv_ptr,
    keys_ptr,
    values_ptr,
    part_ptr,
    lse_ptr,
    decodes_ptr,
    seqs_ptr,
    blocks_ptr,
    scale,
    num_q: tl.constexpr,
    num_kv: tl.constexpr,
    head_dim: tl.constexpr,
    block_size: tl.constexpr,
    splits: tl.constexpr,
    least_chunk: tl.constexpr,
    rows: tl.constexpr,
    dims_block: tl.constexpr,
    at_once: tl.constexpr,
    precision: tl.constexpr,
    is_overlapped: tl.constexpr,
):
    wait_for_previous(is_overlapped)
    place, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    seq = tl.load(decodes_ptr + place)
    if seq < 0:
        return
    row = tl.load(seqs_ptr + 4 * seq).to(tl.int64)
    total = tl.load(seqs_ptr + 4 * seq + 2)
    first_block = tl.load(seqs_ptr + 4 * seq + 3)
    chunk = _chunk_of(total, splits, least_chunk)
    begin = split * chunk
    end = tl.minimum(begin + chunk, total)
    if begin >= end:
        return
    group: tl.constexpr = num_q // num_kv
    member = tl.arange(0, rows)
    dims = tl.arange(0, dims_block)
    inside = (member < group)[:, None] & (dims < head_dim)[None, :]
    q_heads = head * group + member
    queries = qkv_ptr + row * (num_q + 2 * num_kv) * head_dim
    q = tl.load(queries + q_heads[:, None] * head_dim + dims[None, :], mask=inside, other=0.0)
    best = tl.full([rows], float("-inf"), tl.float32)
    weight = tl.zeros([rows], tl.float32)
    answer = tl.zeros([rows, dims_block], tl.float32)
    for start in range(begin, end, at_once):
        tokens = start + tl.arange(0, at_once)
        is_here = tokens < end
        block = tl.load(blocks_ptr + first_block + tokens // block_size, mask=is_here, other=0)
        slots = block.to(tl.int64) * block_size + tokens % block_size
        at = ((slots * num_kv + head) * head_dim)[:, None] + dims[None, :]
        is_read = is_here[:, None] & (dims < head_dim)[None, :]
        k = tl.load(keys_ptr + at, mask=is_read, other=0.0)
        v = tl.load(values_ptr + at, mask=is_read, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=precision) * scale
        scores = tl.where(is_here[None, :], scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, axis=1))
        shares = tl.exp2(scores - higher[:, None])
        kept = tl.exp2(best - higher)
        weight = weight * kept + tl.sum(shares, axis=1)
        answer = answer * kept[:, None]
        answer += tl.dot(shares.to(v.dtype), v, input_precision=precision)
        best = higher
    parts = (place * num_q + q_heads) * splits + split
    tl.store(
        part_ptr + parts[:, None] * head_dim + dims[None, :], answer / weight[:, None], mask=inside
    )
    tl.store(lse_ptr + parts, best + tl.log2(weight), mask=member < group)


@triton.jit  # type: ignore[untyped-decorator]
def _join_kernel(  # type: ignore[no-untyped-def]
    part_ptr,
    lse_ptr,
    out_ptr,
    decodes_ptr,
    seqs_ptr,
    num_q: tl.constexpr,
    head_dim: tl.constexpr,
    splits: tl.constexpr,
    least_chunk: tl.constexpr,
    dims_block: tl.constexpr,
    is_overlapped: tl.constexpr,
):
    wait_for_previous(is_overlapped)
    place, head = tl.program_id(0), tl.program_id(1)
    seq = tl.load(decodes_ptr + place)
    if seq < 0:
        return
    row = tl.load(seqs_ptr + 4 * seq).to(tl.int64)
    total = tl.load(seqs_ptr + 4 * seq + 2)
    used = tl.cdiv(total, _chunk_of(total, splits, least_chunk))
    numbers = tl.arange(0, splits)
    dims = tl.arange(0, dims_block)
    parts = (place * num_q + head) * splits + numbers
    lse = tl.load(lse_ptr + parts, mask=numbers < used, other=float("-inf"))
    shares = tl.exp2(lse - tl.max(lse, axis=0))
    inside = (numbers < used)[:, None] & (dims < head_dim)[None, :]
    part = tl.load(part_ptr + parts[:, None] * head_dim + dims[None, :], mask=inside, other=0.0)
    answer = tl.sum(part * shares[:, None], axis=0) / tl.sum(shares, axis=0)
    at = out_ptr + (row * num_q + head) * head_dim + dims
    tl.store(at, answer.to(out_ptr.dtype.element_ty), mask=dims < head_dim)


def decode(
    qkv: Tensor, out: Tensor, *, cache: LayerCache, tables: DeviceTables, shape: HeadShape
) -> None:
    """Fill the rows of ``out[rows, num_q * hd]`` that belong to decoding sequences.

    ``qkv`` and ``cache`` are as :func:`engine.kernels.gpu.heads.place_heads` left them. Scores,
    shares and sums are float32; shares meet the values in the values' dtype.
    """
    num_q, num_kv, head_dim = shape.num_q, shape.cache.num_kv_heads, shape.cache.head_dim
    num_decodes = tables.shape.num_decodes
    if not num_decodes:
        return
    splits = num_splits(num_decodes * num_kv)
    part = torch.empty(
        (num_decodes, num_q, splits, head_dim), dtype=torch.float32, device=qkv.device
    )
    lse = part.new_empty((num_decodes, num_q, splits))
    constants = head_constants(shape)
    _decode_kernel[(num_decodes, num_kv, splits)](
        qkv,
        cache.keys,
        cache.values,
        part,
        lse,
        tables.decodes,
        tables.seqs,
        tables.blocks,
        score_scale(head_dim),
        **constants,
        splits=splits,
        least_chunk=LEAST_CHUNK_TOKENS,
        rows=max(LEAST_ROWS, triton.next_power_of_2(num_q // num_kv)),
        at_once=TOKENS_AT_ONCE,
        precision=dot_precision(qkv.dtype),
        num_warps=NUM_WARPS,
        num_stages=NUM_STAGES,
        **overlap.overlapped(qkv),
    )
    _join_kernel[(num_decodes, num_q)](
        part,
        lse,
        out,
        tables.decodes,
        tables.seqs,
        num_q=num_q,
        head_dim=head_dim,
        splits=splits,
        least_chunk=LEAST_CHUNK_TOKENS,
        dims_block=constants["dims_block"],
        num_warps=1,
        **overlap.overlapped(qkv),
    )


def num_splits(num_programs: int) -> int:
    """Parts of each context, a power of 2, where there are ``num_programs`` without cutting.

    Never one: a batch may hold one context that is much longer than the others.
    """
    wanted: int = triton.next_power_of_2(triton.cdiv(ENOUGH_PROGRAMS, num_programs))
    return min(MOST_SPLITS, max(FEWEST_SPLITS, wanted))


def head_constants(shape: HeadShape) -> dict[str, int]:
    """What attention's kernels are compiled for."""
    return {
        "num_q": shape.num_q,
        "num_kv": shape.cache.num_kv_heads,
        "head_dim": shape.cache.head_dim,
        "block_size": shape.cache.block_size,
        "dims_block": max(LEAST_ROWS, triton.next_power_of_2(shape.cache.head_dim)),
    }


def score_scale(head_dim: int) -> float:
    """What scores are multiplied with before powers of 2 are taken of them."""
    return float(head_dim**-0.5) * LOG2_OF_E


def dot_precision(dtype: torch.dtype) -> str:
    """Products of float32 are not to be rounded to the 10 bits of TF32."""
    return "ieee" if dtype is torch.float32 else "tf32"
