"""Gumbel numbers inside kernels, by the counters of :mod:`engine.sampling.philox`."""

from __future__ import annotations

import triton
import triton.language as tl

from engine.sampling.triton_rows import (
    CHOICE,
    POSITION,
    SEED_HIGH,
    SEED_LOW,
    whole_field,
)

_SCALE = tl.constexpr(2.0**-32)
_ALL_BITS = tl.constexpr(0xFFFFFFFF)


# Triton has no types, and reads annotations as its own.
@triton.jit  # type: ignore[untyped-decorator]
def noise_words(  # type: ignore[no-untyped-def]
    words_ptr, num_rows, row, first, count: tl.constexpr
):
    """Philox words u4[count] of tokens ``first`` and so on; both are multiples of four."""
    key_low = whole_field(words_ptr, num_rows, row, SEED_LOW).to(tl.uint32, bitcast=True)
    key_high = whole_field(words_ptr, num_rows, row, SEED_HIGH).to(tl.uint32, bitcast=True)
    position = whole_field(words_ptr, num_rows, row, POSITION).to(tl.uint32, bitcast=True)
    choice = whole_field(words_ptr, num_rows, row, CHOICE).to(tl.uint32, bitcast=True)
    blocks = (first // 4 + tl.arange(0, count // 4)).to(tl.uint32)
    nothing = tl.zeros_like(blocks)
    w0, w1, w2, w3 = tl.philox_impl(
        blocks, nothing + position, nothing + choice, nothing, key_low, key_high
    )
    # Word w of block b is token 4 * b + w's; the last pair joined varies fastest.
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (count,))


@triton.jit
def gumbel_exact(words):  # type: ignore[no-untyped-def]
    """:func:`engine.sampling.philox.gumbel_rows` of Philox words, in float64."""
    uniform = (words.to(tl.float64) + 0.5) * _SCALE
    return -tl.log(-tl.log(uniform))


@triton.jit
def gumbel_near(words):  # type: ignore[no-untyped-def]
    """The same in float32, within 5e-6.

    A uniform number near 1 has too few bits in float32; there what it lacks to 1 is exact enough,
    and ``-log(1 - q)`` is q + q**2/2 + q**3/3 + ...
    """
    uniform = (words.to(tl.float32) + 0.5) * _SCALE
    lacking = ((words ^ _ALL_BITS).to(tl.float32) + 0.5) * _SCALE
    tail = 0.5 + lacking * (1.0 / 3 + lacking * (0.25 + lacking * 0.2))
    series = lacking * (1.0 + lacking * tail)
    # Where the series is taken, the logarithm may be 0.
    exponential = tl.where(lacking < 0.03125, series, -tl.log(uniform))
    return -tl.log(exponential)
