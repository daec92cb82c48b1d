"""Kernels that look at rows before they are drawn: the best logit, banned ids, and min-p."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.sampling.triton_border import RowBorders, raise_borders
from engine.sampling.triton_rows import (
    DROP_HIGH,
    DROP_LOW,
    NOT_SPECIALIZED,
    Source,
    ban_row,
    edit_row,
    ordinary_best,
    read_row,
    whole_field,
    without_nan,
)


# Triton has no types, and reads annotations as its own.
@triton.jit(do_not_specialize=NOT_SPECIALIZED)  # type: ignore[untyped-decorator]
def _best_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,
    row_stride,
    words_ptr,
    num_rows,
    vocab_size,
    counts_ptr,
    is_in_prompt_ptr,
    bests_ptr,
    has_edits: tl.constexpr,
    chunk: tl.constexpr,
):
    """``bests`` [2, R, C]: of a chunk, the largest logit with and without the banned ids."""
    row, number = tl.program_id(0), tl.program_id(1)
    num_chunks = tl.num_programs(1)
    ids = number * chunk + tl.arange(0, chunk)
    x = read_row(logits_ptr, row_stride, row, ids, vocab_size)
    if has_edits:
        x = edit_row(x, row, ids, words_ptr, num_rows, vocab_size, counts_ptr, is_in_prompt_ptr)
    x = without_nan(x)
    at = row * num_chunks + number
    tl.store(bests_ptr + at, tl.max(x, axis=0))
    if has_edits:
        x = ban_row(x, row, ids, words_ptr, num_rows)
    tl.store(bests_ptr + num_rows * num_chunks + at, tl.max(x, axis=0))


@triton.jit(do_not_specialize=NOT_SPECIALIZED)  # type: ignore[untyped-decorator]
def _floor_kernel(  # type: ignore[no-untyped-def]
    words_ptr,
    num_rows,
    bests_ptr,
    num_chunks,
    best_ptr,
    least_ptr,
    is_banned_ptr,
    cut_ptr,
    padded_chunks: tl.constexpr,
):
    """All of :class:`RowBorders`, for min-p alone."""
    row = tl.program_id(0)
    numbers = tl.arange(0, padded_chunks)
    inside, at = numbers < num_chunks, row * num_chunks + numbers
    best = tl.max(tl.load(bests_ptr + at, mask=inside, other=float("-inf")), axis=0)
    at = num_rows * num_chunks + at
    left = tl.max(tl.load(bests_ptr + at, mask=inside, other=float("-inf")), axis=0)
    is_banned = left > float("-inf")
    best = tl.where(is_banned, left, best)
    low = whole_field(words_ptr, num_rows, row, DROP_LOW).to(tl.uint32, bitcast=True)
    high = whole_field(words_ptr, num_rows, row, DROP_HIGH).to(tl.uint32, bitcast=True)
    drop = ((high.to(tl.uint64) << 32) | low.to(tl.uint64)).to(tl.float64, bitcast=True)
    tl.store(best_ptr + row, best)
    tl.store(least_ptr + row, (ordinary_best(best).to(tl.float64) + drop).to(tl.float32))
    tl.store(is_banned_ptr + row, is_banned.to(tl.int32))
    tl.store(cut_ptr + row, tl.full((), 0, tl.int64))


def find_borders(source: Source) -> RowBorders:
    """The borders of all R rows; rows that are greedy or have no limits keep everything."""
    device, num_rows, num_chunks = source.logits.device, source.num_rows, source.num_chunks
    bests = torch.empty((2, num_rows, num_chunks), dtype=torch.float32, device=device)
    borders = RowBorders(
        best=torch.empty(num_rows, dtype=torch.float32, device=device),
        least=torch.empty(num_rows, dtype=torch.float32, device=device),
        is_banned=torch.empty(num_rows, dtype=torch.int32, device=device),
        cut=torch.empty(num_rows, dtype=torch.int64, device=device),
    )
    _best_kernel[(num_rows, num_chunks)](
        *source.arguments,
        bests,
        has_edits=source.kinds.has_edits,
        chunk=source.chunk,
        enable_fp_fusion=False,
        num_warps=8,
    )
    _floor_kernel[(num_rows,)](
        source.words,
        num_rows,
        bests,
        num_chunks,
        *borders.fields,
        padded_chunks=source.padded_chunks,
    )
    if source.kinds.has_top_k:
        raise_borders(source, borders, by_weight=False)
    if source.kinds.has_top_p:
        raise_borders(source, borders, by_weight=True)
    return borders
