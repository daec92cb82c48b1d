"""One step as it is packed, as it is scheduled, and what its result did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from engine.scheduler.table import Sequence
from engine.spec.modes import Mode
from engine.spec.request import FinishReason
from engine.spec.steps import Int32Array, StepShape

SlotArray = npt.NDArray[np.intp]
# Rows and the block that each was given, or one row and all its new blocks i4.
GrownBlocks = tuple[SlotArray | int, Int32Array]
NO_BLOCKS: Int32Array = np.empty(0, np.int32)
NO_SLOTS: SlotArray = np.empty(0, np.intp)
NO_SHAPE = StepShape()


class PlacedSequence(msgspec.Struct, frozen=True, kw_only=True, eq=False, gc=False):
    """A sequence that took row ``slot``: its first ``num_cached`` of ``num_tokens`` known tokens
    lie in ``blocks`` i4 already.
    """

    sequence: Sequence
    slot: int
    num_tokens: int
    num_cached: int
    blocks: Int32Array


class PackedChunk(NamedTuple):
    """``num_tokens`` of the prompt in row ``slot``, after ``num_before`` that are computed;
    ``is_whole``: they reach its last known token, and so it is sampled."""

    slot: int
    num_tokens: int
    num_before: int
    is_whole: bool


@dataclass(slots=True)
class PackedRows:
    """The rows of a step in the making: decodes first, one token each, then chunks of prompts; and
    how many ``tokens`` it may still hold. ``placed`` are the sequences that took their rows for it,
    ``grown`` the blocks that rows were given for it. ``shape`` is known once all rows are."""

    tokens: int
    step_id: int
    used: int = 0
    prefill_tokens: int = 0
    has_preempted: bool = False
    shape: StepShape = NO_SHAPE
    decodes: SlotArray = field(default_factory=lambda: NO_SLOTS)
    chunks: list[PackedChunk] = field(default_factory=list)
    placed: list[PlacedSequence] = field(default_factory=list)
    grown: list[GrownBlocks] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        return len(self.decodes) + len(self.chunks)

    def holds(self, slot: int) -> bool:
        return slot in self.decodes or any(slot == chunk.slot for chunk in self.chunks)

    def take_chunk(self, chunk: PackedChunk, blocks: Int32Array) -> None:
        """A chunk of one row's prompt; the row was given ``blocks`` i4 for it."""
        self.chunks.append(chunk)
        self.tokens -= chunk.num_tokens
        self.used += chunk.num_tokens
        self.prefill_tokens += chunk.num_tokens
        if len(blocks):
            self.grown.append((chunk.slot, blocks))

    def take_decodes(self, slots: SlotArray, grown: GrownBlocks) -> None:
        """One decode token for each row; some rows were given a block for it."""
        self.decodes = slots
        self.tokens -= len(slots)
        self.used += len(slots)
        if len(grown[1]):
            self.grown.append(grown)


@dataclass(frozen=True, kw_only=True, eq=False)
class ScheduledStep:
    """One step as scheduled: S rows, each a slot of the table with its new tokens.

    ``context_lens`` i4[S] are tokens already in the cache, ``query_lens`` i4[S] the new ones,
    ``is_sampled`` bool[S] marks rows whose last known token is in this step. ``placed`` are the
    sequences that took their rows in this step, ``grown`` the blocks that rows were given for it.
    Rows from ``first_chunk`` on compute a part of a prompt, those before it decode.
    """

    step_id: int
    shape: StepShape
    slots: SlotArray
    query_lens: Int32Array
    context_lens: Int32Array
    is_sampled: npt.NDArray[np.bool_]
    first_chunk: int
    sequences: list[Sequence]
    placed: list[PlacedSequence]
    grown: list[GrownBlocks]

    @property
    def num_sampled(self) -> int:
        return self.shape.num_sampled

    @property
    def sampled_slots(self) -> SlotArray:
        """Rows of the table that get a token."""
        if self.first_chunk == len(self.slots):
            return self.slots
        return self.slots[self.is_sampled]

    def list_grown(self) -> tuple[Int32Array, Int32Array]:
        """Rows i4[K] and the block i4[K] that each was given, in order."""
        if not self.grown:
            return NO_BLOCKS, NO_BLOCKS
        slots = [
            np.full(len(blocks), slot, np.int32) if isinstance(slot, int) else slot
            for slot, blocks in self.grown
        ]
        return np.concatenate(slots, dtype=np.int32), np.concatenate([b for _, b in self.grown])

    @property
    def request_ids(self) -> list[str]:
        return [sequence.request_id for sequence in self.sequences]


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What one step did: which sequences got a token (with its id), and which ended.

    ``sampled_rows`` says which of the step's sampled rows each of ``sampled`` was; rows of
    sequences that had ended meanwhile are left out. ``failed`` are those that got none, because
    their logits held no finite value; they have ended.
    """

    sampled: list[tuple[Sequence, int]] = field(default_factory=list)
    sampled_rows: list[int] = field(default_factory=list)
    finished: list[tuple[Sequence, FinishReason]] = field(default_factory=list)
    failed: list[Sequence] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class SchedulerCounts:
    """What a scheduler has counted since it began; prefix counts are tokens."""

    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0

    def __sub__(self, earlier: SchedulerCounts) -> SchedulerCounts:
        return SchedulerCounts(
            preemptions=self.preemptions - earlier.preemptions,
            prefix_queries=self.prefix_queries - earlier.prefix_queries,
            prefix_hits=self.prefix_hits - earlier.prefix_hits,
        )


def step_shape(
    query_lens: Int32Array, context_lens: Int32Array, num_sampled: int, mode: Mode
) -> StepShape:
    """Shape of a step from its rows; one-token rows count as decodes."""
    chunks = list(zip(query_lens.tolist(), context_lens.tolist(), strict=True))
    return shape_of(num_decodes=0, cached=0, chunks=chunks, num_sampled=num_sampled, mode=mode)


def shape_of(
    *, num_decodes: int, cached: int, chunks: list[tuple[int, int]], num_sampled: int, mode: Mode
) -> StepShape:
    """Shape of a step of ``num_decodes`` rows with ``cached`` tokens in all, and of ``chunks`` of
    (new, cached) tokens; a chunk of one token is a decode."""
    prefill_tokens = prefill_context = pairs = num_prefills = 0
    for new, before in chunks:
        if new == 1:
            num_decodes += 1
            cached += before
        else:
            num_prefills += 1
            prefill_tokens += new
            prefill_context += new + before
            pairs += new * before + new * (new + 1) // 2
    return StepShape(
        mode=mode,
        num_seqs=num_decodes + num_prefills,
        num_decode_tokens=num_decodes,
        num_prefill_tokens=prefill_tokens,
        decode_context_tokens=cached + num_decodes,
        prefill_context_tokens=prefill_context,
        prefill_attention_pairs=pairs,
        num_sampled=num_sampled,
    )
