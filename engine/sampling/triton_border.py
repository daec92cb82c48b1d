"""Kernels that find the least logit which top-k and top-p keep, without sorting.

The bits of a float32 have an image in whole numbers that orders as the floats do. The border is
found digit by digit of that image, the highest digit first. In each pass, programs sum the mass of
the tokens inside the bracket for each value of the next digit: one per token for top-k, its
probability in fixed point for top-p (:data:`engine.sampling.rules_numpy.WEIGHT_SCALE`), so that
sums are exact in any order. The next pass reads all sums, and the border is the least number with
less than the wanted mass above it::

    pass 0: [0...., F....]    pass 1: [B0..., BF...]    pass 2: [B30.., B3F..]    ...

Passes follow one another without looking at any result on the host. Chunks without a token inside
the bracket are not read again, so the last passes cost little.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.sampling import rules_numpy
from engine.sampling.triton_rows import (
    NOT_SPECIALIZED,
    TEMPERATURE_F,
    TOP_K,
    TOP_P_F,
    Source,
    finish_row,
    float_field,
    ordinary,
    ordinary_best,
    read_row,
    whole_field,
)

WEIGHT_SCALE = tl.constexpr(rules_numpy.WEIGHT_SCALE)
# Added and taken off again, it leaves a float64 below 2**51 rounded to a whole number.
_ROUNDER = tl.constexpr(1.5 * 2.0**52)
DIGIT_BITS = tl.constexpr(4)
NUM_DIGITS = tl.constexpr(16)
# Numbers that passes leave of a row's bracket; the fourth keeps its place aligned for any row.
BRACKET = tl.constexpr(4)
# Tokens whose digits a program holds at once, of its chunk.
PART = 256
# A program of a pass takes the chunks of this many drawing programs, as it holds less of a chunk at
# a time.
CHUNKS_AT_ONCE = 2
# Bits at the end of the image that all numbers of a format have in common.
IDLE_BITS = {torch.float32: 0, torch.float16: 12, torch.bfloat16: 16}


@dataclass(frozen=True, kw_only=True)
class RowBorders:
    """Of R rows: ``best`` f4[R] the largest logit, ``least`` f4[R] the least one that is kept,
    ``is_banned`` i4[R] whether banned ids are out (a row that has nothing else keeps them), and
    ``cut`` i8[R]: the weight of those tokens at top-k's border that are one too many, which count
    as kept but not in the sum that top-p takes its part of.
    """

    best: Tensor
    least: Tensor
    is_banned: Tensor
    cut: Tensor

    @property
    def fields(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All of them, in the order that kernels take them."""
        return self.best, self.least, self.is_banned, self.cut


# Triton has no types, and reads annotations as its own.
@triton.jit
def _ordered(x):  # type: ignore[no-untyped-def]
    """Whole numbers u4 that order as the floats do; the two zeros must be one already."""
    bits = x.to(tl.int32, bitcast=True)
    # Negative floats ascend while their bits descend.
    mirrored = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return mirrored.to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def _float_of(key, idle_bits):  # type: ignore[no-untyped-def]
    """The float whose image begins with the digits of ``key`` i8, the idle ones at its end 0."""
    mirrored = (key.to(tl.uint32) ^ 0x80000000).to(tl.int32, bitcast=True)
    bits = mirrored ^ ((mirrored >> 31) & 0x7FFFFFFF)
    return ((bits >> idle_bits) << idle_bits).to(tl.float32, bitcast=True)


@triton.jit
def _weight(x, best, temperature):  # type: ignore[no-untyped-def]
    """Unnormalised probabilities i8 in fixed point."""
    score = (x.to(tl.float64) - best.to(tl.float64)) / temperature.to(tl.float64)
    return ((tl.exp(score) * WEIGHT_SCALE + _ROUNDER) - _ROUNDER).to(tl.int64)


@triton.jit  # type: ignore[untyped-decorator]
def _has_border(  # type: ignore[no-untyped-def]
    words_ptr, num_rows, row, vocab_size, by_weight: tl.constexpr
):
    """Whether the row draws with top-p, or with top-k."""
    is_limited = float_field(words_ptr, num_rows, row, TOP_P_F) < 1.0
    if not by_weight:
        top_k = whole_field(words_ptr, num_rows, row, TOP_K)
        is_limited = (top_k > 0) & (top_k < vocab_size)
    return is_limited & (float_field(words_ptr, num_rows, row, TEMPERATURE_F) > 0)


@triton.jit  # type: ignore[untyped-decorator]
def _narrow(  # type: ignore[no-untyped-def]
    words_ptr,
    num_rows,
    row,
    cut_ptr,
    sums_ptr,
    bracket_ptr,
    num_chunks,
    shift,
    is_first,
    by_weight: tl.constexpr,
    padded_chunks: tl.constexpr,
):
    """What a pass at digit ``shift`` found: the bracket's lower end, the mass above the bracket,
    the wanted mass, the digit and the mass of that digit.
    """
    numbers, digits = tl.arange(0, padded_chunks), tl.arange(0, NUM_DIGITS)
    at = (row.to(tl.int64) * num_chunks + numbers)[:, None] * NUM_DIGITS + digits[None, :]
    sums = tl.load(sums_ptr + at, mask=(numbers < num_chunks)[:, None], other=0)
    masses = tl.sum(sums, axis=0)
    lower = tl.load(bracket_ptr + BRACKET * row)
    above = tl.load(bracket_ptr + BRACKET * row + 1)
    wanted = tl.load(bracket_ptr + BRACKET * row + 2)
    if is_first:  # nothing of these is there yet
        lower, above = tl.zeros_like(lower), tl.zeros_like(above)
        if by_weight:
            top_p = float_field(words_ptr, num_rows, row, TOP_P_F).to(tl.float64)
            part = top_p * (tl.sum(masses, axis=0) - tl.load(cut_ptr + row)).to(tl.float64)
            wanted = part.to(tl.int64)
            # A whole mass is less than a number if it is less than the next whole number. The best
            # token is always kept.
            wanted = tl.maximum(wanted + (wanted.to(tl.float64) < part).to(tl.int64), 1)
        else:
            wanted = whole_field(words_ptr, num_rows, row, TOP_K).to(tl.int64)
    is_beyond = digits[None, :] > digits[:, None]
    beyond = tl.sum(tl.where(is_beyond, masses[None, :], 0), axis=1)
    digit = tl.min(tl.where(above + beyond < wanted, digits, NUM_DIGITS - 1), axis=0)
    above += tl.sum(tl.where(digits > digit, masses, 0), axis=0)
    mass = tl.sum(tl.where(digits == digit, masses, 0), axis=0)
    return lower + (digit.to(tl.int64) << shift), above, wanted, digit, mass


@triton.jit(do_not_specialize=NOT_SPECIALIZED)  # type: ignore[untyped-decorator]
def _digit_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,
    row_stride,
    words_ptr,
    num_rows,
    vocab_size,
    counts_ptr,
    is_in_prompt_ptr,
    best_ptr,
    least_ptr,
    is_banned_ptr,
    cut_ptr,
    sums_before_ptr,
    sums_ptr,
    bracket_before_ptr,
    bracket_ptr,
    shift,
    number_of_pass,
    by_weight: tl.constexpr,
    has_edits: tl.constexpr,
    chunk: tl.constexpr,
    part: tl.constexpr,
    padded_chunks: tl.constexpr,
):
    """``sums`` i8[R, C, digits]: the mass of a chunk's tokens inside the bracket, by digit."""
    row, number = tl.program_id(0), tl.program_id(1)
    num_chunks = tl.num_programs(1)
    if not _has_border(words_ptr, num_rows, row, vocab_size, by_weight):
        return
    digits = tl.arange(0, NUM_DIGITS)
    at = row.to(tl.int64) * num_chunks + number
    masses = tl.zeros((part, NUM_DIGITS), tl.int64)
    lower = tl.full((), 0, tl.int64)
    mine = tl.full((), 1, tl.int64)
    if number_of_pass > 0:
        lower, above, wanted, chosen, _ = _narrow(
            words_ptr,
            num_rows,
            row,
            cut_ptr,
            sums_before_ptr,
            bracket_before_ptr,
            num_chunks,
            shift + DIGIT_BITS,
            number_of_pass == 1,
            by_weight,
            padded_chunks,
        )
        mine = tl.load(sums_before_ptr + at * NUM_DIGITS + chosen)
        if number == 0:
            tl.store(bracket_ptr + BRACKET * row, lower)
            tl.store(bracket_ptr + BRACKET * row + 1, above)
            tl.store(bracket_ptr + BRACKET * row + 2, wanted)
    if mine > 0:
        best, least = tl.load(best_ptr + row), tl.load(least_ptr + row)
        temperature = float_field(words_ptr, num_rows, row, TEMPERATURE_F)
        for first in range(number * chunk, number * chunk + chunk, part):
            ids = first + tl.arange(0, part)
            x = read_row(logits_ptr, row_stride, row, ids, vocab_size)
            x = finish_row(
                x,
                row,
                ids,
                words_ptr,
                num_rows,
                vocab_size,
                counts_ptr,
                is_in_prompt_ptr,
                is_banned_ptr,
                has_edits,
                True,
            )
            x = ordinary(x, ids, best)
            key = _ordered(x)
            # Two shifts, for the first pass has all 32 bits behind it.
            higher = (key >> shift) >> DIGIT_BITS
            inside = (ids < vocab_size) & (higher == (lower.to(tl.uint32) >> shift) >> DIGIT_BITS)
            if by_weight:
                inside &= x >= least
            # Exponentials in float64 are expensive; few parts of the late passes need any.
            if tl.sum(inside.to(tl.int32), axis=0) > 0:
                mass = tl.full((part,), 1, tl.int64)
                if by_weight:
                    mass = _weight(x, ordinary_best(best), temperature)
                mass = tl.where(inside, mass, 0)
                digit = ((key >> shift) & (NUM_DIGITS - 1)).to(tl.int32)
                masses += tl.where(digit[:, None] == digits[None, :], mass[:, None], 0)
    tl.store(sums_ptr + at * NUM_DIGITS + digits, tl.sum(masses, axis=0))


@triton.jit(do_not_specialize=NOT_SPECIALIZED)  # type: ignore[untyped-decorator]
def _settle_kernel(  # type: ignore[no-untyped-def]
    words_ptr,
    num_rows,
    vocab_size,
    best_ptr,
    least_ptr,
    cut_ptr,
    sums_ptr,
    bracket_ptr,
    num_chunks,
    shift,
    by_weight: tl.constexpr,
    padded_chunks: tl.constexpr,
):
    """Raise ``least`` to the border that the last pass found."""
    row = tl.program_id(0)
    if not _has_border(words_ptr, num_rows, row, vocab_size, by_weight):
        return
    key, above, wanted, _, mass = _narrow(
        words_ptr,
        num_rows,
        row,
        cut_ptr,
        sums_ptr,
        bracket_ptr,
        num_chunks,
        shift,
        False,
        by_weight,
        padded_chunks,
    )
    border = _float_of(key, shift)
    least = tl.maximum(tl.load(least_ptr + row), border)
    tl.store(least_ptr + row, least)
    if not by_weight:
        # As many as top-k has too many lie at its border; where min-p's is higher, none do.
        temperature = float_field(words_ptr, num_rows, row, TEMPERATURE_F)
        weight = _weight(border, ordinary_best(tl.load(best_ptr + row)), temperature)
        cut = (above + mass - wanted) * weight
        tl.store(cut_ptr + row, tl.where(least == border, cut, 0))


def raise_borders(source: Source, borders: RowBorders, *, by_weight: bool) -> None:
    """Raise the borders of rows that draw with top-p (``by_weight``) or top-k."""
    device, num_rows = source.logits.device, source.num_rows
    chunk = CHUNKS_AT_ONCE * source.chunk
    num_chunks = -(-source.vocab_size // chunk)
    padded_chunks = 1 << (num_chunks - 1).bit_length()
    shape = (2, num_rows, num_chunks, NUM_DIGITS.value)
    # A pass reads what the one before wrote.
    sums = torch.empty(shape, dtype=torch.int64, device=device)
    brackets = torch.empty((2, num_rows, BRACKET.value), dtype=torch.int64, device=device)
    # Edits and the zeros of an odd row need all digits; its infinities have no others than these.
    idle_bits = 0 if source.kinds.has_edits else IDLE_BITS[source.logits.dtype]
    shifts = range(32 - DIGIT_BITS.value, idle_bits - 1, -DIGIT_BITS.value)
    for number, shift in enumerate(shifts):
        now, before = number % 2, (number + 1) % 2
        _digit_kernel[(num_rows, num_chunks)](
            *source.arguments,
            *borders.fields,
            sums[before],
            sums[now],
            brackets[before],
            brackets[now],
            shift=shift,
            number_of_pass=number,
            by_weight=by_weight,
            has_edits=source.kinds.has_edits,
            chunk=chunk,
            part=min(PART, chunk),
            padded_chunks=padded_chunks,
            enable_fp_fusion=False,
            num_warps=8,
        )
    last = (len(shifts) - 1) % 2
    _settle_kernel[(num_rows,)](
        source.words,
        num_rows,
        source.vocab_size,
        borders.best,
        borders.least,
        borders.cut,
        sums[last],
        brackets[last],
        num_chunks,
        shift=shifts[-1],
        by_weight=by_weight,
        padded_chunks=padded_chunks,
        enable_fp_fusion=False,
        num_warps=8,
    )
