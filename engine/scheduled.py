"""One step as the scheduler builds it, and what its result did."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engine.plan import Mode
from engine.request import FinishReason
from engine.sequences import Sequence
from engine.steps import Int32Array, StepShape

SlotArray = npt.NDArray[np.intp]
# Stands for a token whose content nobody computes (simulation).
UNKNOWN_TOKEN = -1


@dataclass(frozen=True, kw_only=True, eq=False)
class PlacedSequence:
    """A sequence that took row ``slot``: its first ``num_cached`` of ``num_tokens`` known tokens
    lie in ``blocks`` i4 already.
    """

    sequence: Sequence
    slot: int
    num_tokens: int
    num_cached: int
    blocks: Int32Array


@dataclass(frozen=True, kw_only=True, eq=False)
class ScheduledStep:
    """One step as scheduled: S rows, each a slot of the table with its new tokens.

    ``context_lens`` i4[S] are tokens already in the cache, ``query_lens`` i4[S] the new ones,
    ``is_sampled`` bool[S] marks rows whose last known token is in this step. ``placed`` took
    their rows in this step, and block ``grown_blocks`` i4[K] was given to row ``grown_slots``.
    """

    step_id: int
    shape: StepShape
    slots: SlotArray
    query_lens: Int32Array
    context_lens: Int32Array
    is_sampled: npt.NDArray[np.bool_]
    sequences: list[Sequence]
    placed: list[PlacedSequence]
    grown_slots: Int32Array
    grown_blocks: Int32Array

    @property
    def num_sampled(self) -> int:
        return self.shape.num_sampled

    @property
    def chunk_rows(self) -> SlotArray:
        """Rows that compute a part of a prompt, or one that was found in part."""
        if self.shape.num_prefill_tokens == 0 and not self.placed:
            return np.empty(0, np.intp)
        placed = [p.slot for p in self.placed]
        return np.flatnonzero((self.query_lens > 1) | np.isin(self.slots, placed))

    @property
    def request_ids(self) -> list[str]:
        return [sequence.request_id for sequence in self.sequences]


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What one step did: sequences that got a token (with its id), and those that ended.

    ``sampled_rows`` says which of the step's sampled rows each of ``sampled`` was; rows of
    sequences that had ended meanwhile are left out.
    """

    sampled: list[tuple[Sequence, int]] = field(default_factory=list)
    sampled_rows: list[int] = field(default_factory=list)
    finished: list[tuple[Sequence, FinishReason]] = field(default_factory=list)

    @property
    def tokens(self) -> list[str]:
        """Ids of the requests that got one token, in row order."""
        return [sequence.request_id for sequence, _ in self.sampled]


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
    is_decode = query_lens == 1
    decode_context = int(context_lens[is_decode].sum()) + int(is_decode.sum())
    q = query_lens[~is_decode].astype(np.int64)
    c = context_lens[~is_decode].astype(np.int64)
    return StepShape(
        mode=mode,
        num_seqs=len(query_lens),
        num_decode_tokens=int(is_decode.sum()),
        num_prefill_tokens=int(q.sum()),
        decode_context_tokens=decode_context,
        prefill_context_tokens=int((q + c).sum()),
        prefill_attention_pairs=int((q * c + q * (q + 1) // 2).sum()),
        num_sampled=num_sampled,
    )
