"""Builds the per-step plan of attention from the step's tables, in numpy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.kernels.attention import AttentionPlan, DecodeBatch, PrefillChunk
from engine.kernels.transfer import to_device
from engine.spec.steps import Int32Array

Int64Array = npt.NDArray[np.int64]

# A batch's gathered keys stay near 2 MiB of float32: beyond, they leave the L2 cache and decode
# at context 4096 took 4 times as long (66 ms against 17 ms for 16 sequences, 4 KV heads of 64).
MAX_BATCH_ELEMENTS = 512 * 1024
MAX_PADDED_SHARE = 0.3
FREE_PADDING_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class StepTables:
    """One step's sequences: ``query_lens`` and ``context_lens`` [S], ``block_tables`` [S, W]."""

    query_lens: Int64Array
    context_lens: Int64Array
    block_tables: Int32Array

    @cached_property
    def starts(self) -> Int64Array:
        """First row of each sequence in the flattened step."""
        return np.cumsum(self.query_lens) - self.query_lens

    @cached_property
    def totals(self) -> Int64Array:
        """Context length of each sequence once the step is done."""
        return self.context_lens + self.query_lens

    @cached_property
    def is_decode(self) -> bool:
        """Whether every sequence has one row."""
        return bool((self.query_lens == 1).all())

    @cached_property
    def positions(self) -> Int64Array:
        """Position of each row in its sequence, [n]."""
        if self.is_decode:
            return self.context_lens
        offsets = np.repeat(self.context_lens - self.starts, self.query_lens)
        return np.arange(len(offsets)) + offsets

    def slots(self, block_size: int) -> Int64Array:
        """Where the cache keeps each row's keys and values, [n]."""
        seq_of_row = np.arange(len(self.query_lens))
        if not self.is_decode:
            seq_of_row = np.repeat(seq_of_row, self.query_lens)
        return _slots(self.block_tables, seq_of_row, self.positions, block_size)


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """What the plan must know of the cache and of the dtype of scores."""

    block_size: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device


def plan_attention(tables: StepTables, shape: CacheShape) -> AttentionPlan:
    """Which rows run as which batch, where they write, and what they read and mask."""
    is_decode = tables.query_lens == 1
    return AttentionPlan(
        slots=_to(tables.slots(shape.block_size), shape),
        decodes=tuple(
            _decode_batch(tables, seqs, shape)
            for seqs in _batches(np.flatnonzero(is_decode), tables.totals, shape)
        ),
        prefills=tuple(
            _prefill_chunk(tables, int(seq), shape) for seq in np.flatnonzero(~is_decode)
        ),
    )


def _slots(
    block_tables: Int32Array, seqs: Int64Array, positions: Int64Array, block_size: int
) -> Int64Array:
    """Slots of ``positions`` of ``seqs`` (arrays that broadcast)."""
    blocks = block_tables[seqs, positions // block_size].astype(np.int64)
    return blocks * block_size + positions % block_size


def _batches(seqs: Int64Array, totals: Int64Array, shape: CacheShape) -> list[Int64Array]:
    """Decoding sequences in groups of similar length and bounded size.

    In the step's order where lengths allow, so that each group's rows are adjacent.
    """
    if not len(seqs):
        return []
    lengths = totals[seqs].tolist()
    row_elements = shape.num_kv_heads * shape.head_dim
    if not _may_share(max(lengths), sum(lengths), len(lengths)):
        # Sorted by length, neighbours waste little padding on each other.
        seqs = seqs[np.argsort(-totals[seqs], kind="stable")]
        lengths.sort(reverse=True)
    groups, start, longest, total = [], 0, 0, 0
    for place, length in enumerate(lengths):
        longest, total, count = max(longest, length), total + length, place + 1 - start
        is_small = longest * count * row_elements <= MAX_BATCH_ELEMENTS
        if count > 1 and not (is_small and _may_share(longest, total, count)):
            groups.append(seqs[start:place])
            start, longest, total = place, length, length
    return [*groups, seqs[start:]]


def _may_share(longest: int, total: int, count: int) -> bool:
    """Whether padding ``count`` contexts to the longest wastes little; a few never matter."""
    padded = longest * count
    return padded - total <= MAX_PADDED_SHARE * padded + FREE_PADDING_TOKENS


def _decode_batch(tables: StepTables, seqs: Int64Array, shape: CacheShape) -> DecodeBatch:
    lengths = tables.totals[seqs]
    longest = int(lengths.max())
    positions = np.arange(longest)[None, :]
    is_real = positions < lengths[:, None]
    # Padding reads the sequence's own first slot: another one's might hold an overflow.
    slots = _slots(
        tables.block_tables, seqs[:, None], np.where(is_real, positions, 0), shape.block_size
    )
    mask = None
    if not is_real.all():
        rows = np.repeat(is_real, shape.num_kv_heads, axis=0)[:, None, :]
        mask = _additive(rows, shape)
    return DecodeBatch(
        tokens=_rows_or_slice(tables.starts[seqs], shape),
        num_seqs=len(seqs),
        context_len=longest,
        cache_rows=_to(_head_rows(slots, shape.num_kv_heads), shape),
        mask=mask,
    )


def _prefill_chunk(tables: StepTables, seq: int, shape: CacheShape) -> PrefillChunk:
    start, length = int(tables.starts[seq]), int(tables.query_lens[seq])
    context, total = int(tables.context_lens[seq]), int(tables.totals[seq])
    if context == 0:
        return PrefillChunk(start=start, stop=start + length, cache_rows=None, mask=None)
    positions = np.arange(total)
    slots = _slots(tables.block_tables, np.full(total, seq), positions, shape.block_size)
    is_visible = positions[None, :] <= context + np.arange(length)[:, None]
    return PrefillChunk(
        start=start,
        stop=start + length,
        cache_rows=_to(_head_rows(slots[None, :], shape.num_kv_heads), shape),
        mask=_additive(is_visible, shape),
    )


def _head_rows(slots: Int64Array, num_kv_heads: int) -> Int64Array:
    """Slots [S, L] -> cache rows of every head, [S * kv_heads * L], head before position."""
    heads = np.arange(num_kv_heads)[None, :, None]
    return (slots[:, None, :] * num_kv_heads + heads).reshape(-1)


def _rows_or_slice(rows: Int64Array, shape: CacheShape) -> slice | Tensor:
    first = int(rows[0])
    if np.array_equal(rows, np.arange(first, first + len(rows))):
        return slice(first, first + len(rows))
    return _to(rows, shape)


def _additive(is_visible: npt.NDArray[np.bool_], shape: CacheShape) -> Tensor:
    hidden = to_device(~is_visible, shape.device)
    mask = torch.zeros(is_visible.shape, dtype=shape.dtype, device=shape.device)
    return mask.masked_fill_(hidden, -torch.inf)


def _to(array: Int64Array, shape: CacheShape) -> Tensor:
    return to_device(array, shape.device)
