"""Kernels that choose a token of each row: largest logit, or Gumbel-max over what limits keep.

Logits are read once. A program takes a chunk of a row and leaves its best token; a second kernel
chooses among the chunks of a row. Scores of random rows are in float32, relative to the chunk's
largest logit, which keeps them within :data:`MARGIN` of the rule's float64 ones where they matter.
Where the two best of a row are closer than that, the chunks in question are read again in
float64, so that the token is that of the rule (:mod:`engine.sampling.rules_numpy`), whatever the
chunks. What remains different on a GPU is the last bit of its float64 logarithm: two scores would
have to agree to 1e-15 for it to matter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.sampling.triton_border import RowBorders
from engine.sampling.triton_noise import gumbel_exact, gumbel_near, noise_words
from engine.sampling.triton_rows import (
    NOT_SPECIALIZED,
    TEMPERATURE_F,
    Source,
    finish_row,
    float_field,
    ordinary,
    ordinary_best,
    read_row,
)

# A score that may win is above -27 before its noise (which lies between -3.2 and 22.9). There
# subtraction, division and noise in float32 are off by less than 2e-5 together.
MARGIN = tl.constexpr(2.0**-13)
# Below this, differences of logits that matter may be subnormal, which devices may round to zero.
LEAST_TEMPERATURE = tl.constexpr(1e-30)


# Triton has no types, and reads annotations as its own.
@triton.jit(do_not_specialize=NOT_SPECIALIZED)  # type: ignore[untyped-decorator]
def _draw_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,
    row_stride,
    words_ptr,
    num_rows,
    vocab_size,
    counts_ptr,
    is_in_prompt_ptr,
    borders_ptr,
    is_banned_ptr,
    floats_ptr,
    places_ptr,
    has_edits: tl.constexpr,
    has_borders: tl.constexpr,
    chunk: tl.constexpr,
):
    """Of a chunk: ``floats`` its largest logit, best score and second score [3, R, C], ``places``
    the best one's id and whether the model's logits have a finite one [2, R, C].
    """
    row, number = tl.program_id(0), tl.program_id(1)
    num_chunks = tl.num_programs(1)
    ids = number * chunk + tl.arange(0, chunk)
    x = read_row(logits_ptr, row_stride, row, ids, vocab_size)
    is_finite = tl.max((tl.abs(x) < float("inf")).to(tl.int32), axis=0)
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
        has_borders,
    )
    best = tl.max(x, axis=0)
    temperature = float_field(words_ptr, num_rows, row, TEMPERATURE_F)
    score = x
    if temperature > 0:
        x = tl.where(best == float("inf"), tl.where(x == best, 0.0, float("-inf")), x)
        if has_borders:
            x = tl.where(x >= tl.load(borders_ptr + row), x, float("-inf"))
        noise = gumbel_near(noise_words(words_ptr, num_rows, row, number * chunk, chunk))
        score = (x - ordinary_best(best)) / temperature + noise
    top, place = tl.max(score, axis=0, return_indices=True, return_indices_tie_break_left=True)
    token = number * chunk + place
    second = tl.max(tl.where(ids == token, float("-inf"), score), axis=0)
    at, field = row * num_chunks + number, num_rows * num_chunks
    tl.store(floats_ptr + at, best)
    tl.store(floats_ptr + field + at, top)
    tl.store(floats_ptr + 2 * field + at, second)
    tl.store(places_ptr + at, token)
    tl.store(places_ptr + field + at, is_finite)


@triton.jit(do_not_specialize=NOT_SPECIALIZED)  # type: ignore[untyped-decorator]
def _choose_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,
    row_stride,
    words_ptr,
    num_rows,
    vocab_size,
    counts_ptr,
    is_in_prompt_ptr,
    borders_ptr,
    is_banned_ptr,
    floats_ptr,
    places_ptr,
    ids_ptr,
    is_finite_ptr,
    num_chunks,
    has_edits: tl.constexpr,
    has_borders: tl.constexpr,
    chunk: tl.constexpr,
    padded_chunks: tl.constexpr,
):
    """The token of a row among its chunks' best."""
    row = tl.program_id(0)
    numbers = tl.arange(0, padded_chunks)
    inside = numbers < num_chunks
    at, field = row * num_chunks + numbers, num_rows * num_chunks
    bests = tl.load(floats_ptr + at, mask=inside, other=float("-inf"))
    is_finite = tl.load(places_ptr + field + at, mask=inside, other=0)
    best = tl.max(bests, axis=0)
    temperature = float_field(words_ptr, num_rows, row, TEMPERATURE_F)
    if temperature > 0:
        tops = tl.load(floats_ptr + field + at, mask=inside, other=float("-inf")).to(tl.float64)
        seconds = tl.load(floats_ptr + 2 * field + at, mask=inside, other=float("-inf"))
        seconds = seconds.to(tl.float64)
        # From the chunk's largest logit to the row's; where either is infinite only equals count.
        is_known = (bests > float("-inf")) & (bests < float("inf"))
        below = tl.where(is_known, bests, 0.0).to(tl.float64) - ordinary_best(best).to(tl.float64)
        below = tl.where(is_known, below, float("-inf")) / temperature.to(tl.float64)
        below = tl.where(best == float("inf"), float("-inf"), below)
        below = tl.where(bests == best, 0.0, below)
        scores = below + tops
        top, place = tl.max(scores, axis=0, return_indices=True)
        others = tl.where(numbers == place, below + seconds, scores)
        margin = tl.where(temperature < LEAST_TEMPERATURE, float("inf"), MARGIN)
        token = tl.load(places_ptr + row * num_chunks + place)
        if (tl.max(others, axis=0) >= top - margin) & (best > float("-inf")):
            leading = tl.full((), float("-inf"), tl.float64)
            for number in range(num_chunks):
                if tl.max(tl.where(numbers == number, scores, float("-inf")), axis=0) >= (
                    top - margin
                ):
                    ids = number * chunk + tl.arange(0, chunk)
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
                        has_borders,
                    )
                    x = ordinary(x, ids, best)
                    if has_borders:
                        x = tl.where(x >= tl.load(borders_ptr + row), x, float("-inf"))
                    noise = noise_words(words_ptr, num_rows, row, number * chunk, chunk)
                    exact = x.to(tl.float64) - ordinary_best(best).to(tl.float64)
                    exact = exact / temperature.to(tl.float64) + gumbel_exact(noise)
                    found, near = tl.max(exact, axis=0, return_indices=True)
                    token = tl.where(found > leading, number * chunk + near, token)
                    leading = tl.maximum(found, leading)
        token = tl.where(best == float("-inf"), 0, token)
    else:
        _top, place = tl.max(bests, axis=0, return_indices=True)
        token = tl.load(places_ptr + row * num_chunks + place)
    tl.store(ids_ptr + row, token.to(tl.int64))
    tl.store(is_finite_ptr + row, tl.max(is_finite, axis=0) != 0)


def draw_rows(source: Source, borders: RowBorders | None) -> tuple[Tensor, Tensor]:
    """Tokens i8[R], and whether the model's logits of each row have a finite one, bool[R].

    ``borders`` are needed where rows have limits or banned ids.
    """
    device = source.logits.device
    num_rows, num_chunks = source.num_rows, source.num_chunks
    floats = torch.empty((3, num_rows, num_chunks), dtype=torch.float32, device=device)
    places = torch.empty((2, num_rows, num_chunks), dtype=torch.int32, device=device)
    ids = torch.empty(num_rows, dtype=torch.int64, device=device)
    is_finite = torch.empty(num_rows, dtype=torch.bool, device=device)
    read = (*source.arguments, *_of_borders(borders, floats, places), floats, places)
    options = {
        "has_edits": source.kinds.has_edits,
        "has_borders": borders is not None,
        "chunk": source.chunk,
        "enable_fp_fusion": False,
    }
    _draw_kernel[(num_rows, num_chunks)](*read, **options, num_warps=8)
    _choose_kernel[(num_rows,)](
        *read,
        ids,
        is_finite,
        num_chunks,
        **options,
        padded_chunks=source.padded_chunks,
        num_warps=8,
    )
    return ids, is_finite


def _of_borders(
    borders: RowBorders | None, floats: Tensor, places: Tensor
) -> tuple[Tensor, Tensor]:
    """What kernels read of ``borders``; without any, tensors that are not read."""
    return (floats, places) if borders is None else (borders.least, borders.is_banned)
