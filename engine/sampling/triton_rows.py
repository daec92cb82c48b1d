"""What the sampling kernels read of a step's rows: one packed copy, and logits edited as read.

::

    int32 words   field 0 of R rows | field 1 of R rows | ... | biases and banned ids of all rows

One array is one copy to the device. Rows name their part of the lists by its ends in the array.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import triton
import triton.language as tl
from torch import Tensor

from engine.sampling.edits import RowEdits
from engine.sampling.rules import SamplingRows
from engine.spec.steps import Int32Array

# Fields of a row, int32 each; `_f` are the bits of a float32.
TEMPERATURE_F = tl.constexpr(0)
TOP_P_F = tl.constexpr(1)
TOP_K = tl.constexpr(2)
DROP_LOW = tl.constexpr(3)  # float64 in two words: how far min-p reaches below the best logit
DROP_HIGH = tl.constexpr(4)
SEED_LOW = tl.constexpr(5)
SEED_HIGH = tl.constexpr(6)
CHOICE = tl.constexpr(7)
POSITION = tl.constexpr(8)
COUNT_ROW = tl.constexpr(9)  # of the token counts; -1 without penalties
REPETITION_F = tl.constexpr(10)
FREQUENCY_F = tl.constexpr(11)
PRESENCE_F = tl.constexpr(12)
BIAS_FIRST = tl.constexpr(13)
BIAS_END = tl.constexpr(14)
BANNED_FIRST = tl.constexpr(15)
BANNED_END = tl.constexpr(16)
NUM_FIELDS = 17
# Arguments that may change their values without a kernel being compiled again.
NOT_SPECIALIZED = ["num_rows", "shift", "number_of_pass"]
# Steps of up to this many rows are cut finer.
FEW_ROWS = 8
# Lists grow in these steps, so that few sizes of the packed array occur.
LIST_STEP = 64


@dataclass(frozen=True, kw_only=True)
class StepKinds:
    """Which kinds of rows a step has: with the shape of its logits, all that launches depend on."""

    has_top_k: bool = False
    has_top_p: bool = False
    has_min_p: bool = False
    has_edits: bool = False
    has_bans: bool = False

    @property
    def looks_first(self) -> bool:
        """Whether the best logit of each row is needed before rows are drawn."""
        return self.has_top_k or self.has_top_p or self.has_min_p or self.has_bans


@dataclass(frozen=True, kw_only=True)
class PackedRows:
    """``words`` i4 as above."""

    words: Int32Array
    kinds: StepKinds


def pack_rows(
    values: SamplingRows,
    edits: Sequence[RowEdits] = (),
    *,
    vocab_size: int,
    num_rows: int | None = None,
) -> PackedRows:
    """The values of R rows and the ``edits`` of some of them, for logits of ``vocab_size`` ids.

    With ``num_rows`` >= R, greedy rows follow up to that many.
    """
    num_rows = num_rows or len(values.temperatures)
    lists: list[npt.NDArray[np.int32]] = []
    fields = np.zeros((NUM_FIELDS, num_rows), dtype=np.int32)
    _put_values(fields, values)
    fields[COUNT_ROW.value] = -1
    end = fields.size
    for edit in edits:
        biases = np.stack([edit.bias_ids, edit.bias_values.view(np.int32)], axis=1).ravel()
        fields[COUNT_ROW.value, edit.row] = edit.count_row
        penalties = np.array(edit.penalties, dtype=np.float32).view(np.int32)
        fields[REPETITION_F.value : PRESENCE_F.value + 1, edit.row] = penalties
        ends = (end, end + len(biases), end + len(biases) + len(edit.banned_ids))
        fields[BIAS_FIRST.value : BANNED_END.value + 1, edit.row] = (*ends[:2], *ends[1:])
        lists += [biases, edit.banned_ids]
        end = ends[2]
    listed = end - fields.size
    lists.append(np.zeros(-listed % LIST_STEP, dtype=np.int32))
    draws = values.temperatures > 0
    limits_k = draws & (values.top_ks > 0) & (values.top_ks < vocab_size)
    return PackedRows(
        words=np.concatenate([fields.ravel(), *lists]),
        kinds=StepKinds(
            has_top_k=bool(limits_k.any()),
            has_top_p=bool((draws & (values.top_ps < 1)).any()),
            has_min_p=bool((draws & (values.min_ps > 0)).any()),
            has_edits=len(edits) > 0,
            has_bans=any(len(edit.banned_ids) for edit in edits),
        ),
    )


def _put_values(fields: Int32Array, values: SamplingRows) -> None:
    fields = fields[:, : len(values.temperatures)]
    floats = fields.view(np.float32)
    floats[TEMPERATURE_F.value] = values.temperatures
    floats[TOP_P_F.value] = values.top_ps
    fields[TOP_K.value] = values.top_ks
    drops = np.full(len(values.min_ps), -np.inf)
    # One by one: numpy's logarithms of arrays may differ from these, the rule's, in the last bit.
    for row in np.flatnonzero((values.temperatures > 0) & (values.min_ps > 0)).tolist():
        drops[row] = float(values.temperatures[row]) * math.log(values.min_ps[row])
    fields[DROP_LOW.value : DROP_HIGH.value + 1] = _words(drops.view(np.uint64))
    fields[SEED_LOW.value : SEED_HIGH.value + 1] = _words(values.keys.seeds)
    fields[CHOICE.value] = values.keys.choices
    fields[POSITION.value] = values.keys.positions


def _words(numbers: npt.NDArray[np.uint64]) -> Int32Array:
    """u8[R] -> i4[2, R], low words first."""
    words = np.stack([numbers & np.uint64(0xFFFFFFFF), numbers >> np.uint64(32)])
    return words.astype(np.uint32).view(np.int32)


def chunk_of(num_rows: int) -> int:
    """Tokens that one program reads: few rows are cut finer, so that they fill a device too."""
    return 1024 if num_rows <= FEW_ROWS else 2048


@dataclass(frozen=True, kw_only=True)
class Source:
    """What kernels read a step's logits from. ``logits`` [R, >= V] float32, float16 or bfloat16
    with columns side by side, ``words`` of :class:`PackedRows`, ``counts`` i4[P, V] and
    ``is_in_prompt`` bool[P, V] of the rows with penalties.
    """

    logits: Tensor
    words: Tensor
    counts: Tensor
    is_in_prompt: Tensor
    vocab_size: int
    kinds: StepKinds
    chunk: int

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.logits)

    @property
    def num_chunks(self) -> int:
        """Programs of a row."""
        return -(-self.vocab_size // self.chunk)

    @property
    def padded_chunks(self) -> int:
        """The power of two that a block of them takes."""
        return 1 << (self.num_chunks - 1).bit_length()

    @property
    def arguments(self) -> tuple[Tensor, int, Tensor, int, int, Tensor, Tensor]:
        """What every kernel that reads logits begins with."""
        return (
            self.logits,
            self.logits.stride(0),
            self.words,
            self.num_rows,
            self.vocab_size,
            self.counts,
            self.is_in_prompt,
        )


# -- inside kernels ------------------------------------------------------------------------------


# Triton has no types, and reads annotations as its own.
@triton.jit  # type: ignore[untyped-decorator]
def whole_field(words_ptr, num_rows, row, field: tl.constexpr):  # type: ignore[no-untyped-def]
    """A field of a row, i4."""
    return tl.load(words_ptr + field * num_rows + row)


@triton.jit  # type: ignore[untyped-decorator]
def float_field(words_ptr, num_rows, row, field: tl.constexpr):  # type: ignore[no-untyped-def]
    """A field of a row whose bits are a float32."""
    return tl.load(words_ptr + field * num_rows + row).to(tl.float32, bitcast=True)


@triton.jit
def read_row(  # type: ignore[no-untyped-def]
    logits_ptr, row_stride, row, ids, vocab_size
):
    """The model's logits of ``ids`` in float32, -inf for ids outside the vocabulary."""
    at = logits_ptr + row.to(tl.int64) * row_stride + ids
    return tl.load(at, mask=ids < vocab_size, other=float("-inf")).to(tl.float32)


@triton.jit
def edit_row(  # type: ignore[no-untyped-def]
    x, row, ids, words_ptr, num_rows, vocab_size, counts_ptr, is_in_prompt_ptr
):
    """Logits with the row's bias and penalties, in the order and rounding of
    :meth:`engine.sampling.edits.LogitEdits.edited`.
    """
    first = whole_field(words_ptr, num_rows, row, BIAS_FIRST)
    end = whole_field(words_ptr, num_rows, row, BIAS_END)
    for at in range(first, end, 2):
        token = tl.load(words_ptr + at)
        value = tl.load(words_ptr + at + 1).to(tl.float32, bitcast=True)
        x = tl.where(ids == token, x + value, x)
    count_row = whole_field(words_ptr, num_rows, row, COUNT_ROW)
    if count_row >= 0:
        known = count_row.to(tl.int64) * vocab_size + ids
        counts = tl.load(counts_ptr + known, mask=ids < vocab_size, other=0)
        is_in_prompt = tl.load(is_in_prompt_ptr + known, mask=ids < vocab_size, other=0) != 0
        repetition = float_field(words_ptr, num_rows, row, REPETITION_F)
        repetition = tl.zeros_like(x) + repetition
        repeated = tl.where(x > 0, tl.div_rn(x, repetition), x * repetition)
        x = tl.where((counts > 0) | is_in_prompt, repeated, x)
        x = x - float_field(words_ptr, num_rows, row, FREQUENCY_F) * counts.to(tl.float32)
        x = x - tl.where(counts > 0, float_field(words_ptr, num_rows, row, PRESENCE_F), 0.0)
    return x


@triton.jit
def ban_row(x, row, ids, words_ptr, num_rows):  # type: ignore[no-untyped-def]
    """Logits with -inf for the row's banned ids."""
    first = whole_field(words_ptr, num_rows, row, BANNED_FIRST)
    end = whole_field(words_ptr, num_rows, row, BANNED_END)
    for at in range(first, end):
        x = tl.where(ids == tl.load(words_ptr + at), float("-inf"), x)
    return x


@triton.jit  # type: ignore[untyped-decorator]
def finish_row(  # type: ignore[no-untyped-def]
    x,
    row,
    ids,
    words_ptr,
    num_rows,
    vocab_size,
    counts_ptr,
    is_in_prompt_ptr,
    is_banned_ptr,
    has_edits: tl.constexpr,
    has_borders: tl.constexpr,
):
    """From the model's logits to those that are sampled, none of them NaN. Steps with banned ids
    have borders.
    """
    if has_edits:
        x = edit_row(x, row, ids, words_ptr, num_rows, vocab_size, counts_ptr, is_in_prompt_ptr)
        if has_borders:
            is_banned = tl.load(is_banned_ptr + row)
            if is_banned != 0:
                x = ban_row(x, row, ids, words_ptr, num_rows)
    return without_nan(x)


@triton.jit
def without_nan(x):  # type: ignore[no-untyped-def]
    """-inf for NaN, and one zero for both."""
    return tl.where(x == x, tl.where(x == 0.0, 0.0, x), float("-inf"))


@triton.jit
def ordinary(x, ids, best):  # type: ignore[no-untyped-def]
    """A row without NaN, of which the largest is ``best``, as
    :func:`engine.sampling.rules.ordinary_rows` has it.
    """
    x = tl.where(best == float("inf"), tl.where(x == best, 0.0, float("-inf")), x)
    # No `&`: the interpreter cannot join one truth value with a block of them.
    first = tl.where(ids == 0, 0.0, x)
    return tl.where(best == float("-inf"), first, x)


@triton.jit
def ordinary_best(best):  # type: ignore[no-untyped-def]
    """The largest of an ordinary row whose largest was ``best``."""
    return tl.where((best == float("inf")) | (best == float("-inf")), 0.0, best)
