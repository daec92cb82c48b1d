"""One step as the scheduler builds it, and what its result did."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engine.plan import Mode
from engine.request import FinishReason
from engine.running import SlotArray
from engine.sequences import Sequence
from engine.steps import Int32Array, StepShape

# Stands for a token whose content nobody computes (simulation).
UNKNOWN_TOKEN = -1


@dataclass(frozen=True, kw_only=True, eq=False)
class ScheduledStep:
    """One step as scheduled: S rows, each a slot of the table with its new tokens.

    ``context_lens`` i4[S] are tokens already in the cache, ``query_lens`` i4[S] the new ones,
    ``is_sampled`` bool[S] marks rows whose last known token is in this step.
    """

    step_id: int
    shape: StepShape
    slots: SlotArray
    query_lens: Int32Array
    context_lens: Int32Array
    is_sampled: npt.NDArray[np.bool_]
    sequences: list[Sequence]

    @property
    def request_ids(self) -> list[str]:
        return [sequence.request_id for sequence in self.sequences]


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What one step did: sequences that got a token (with its id), and those that ended."""

    sampled: list[tuple[Sequence, int]] = field(default_factory=list)
    finished: list[tuple[Sequence, FinishReason]] = field(default_factory=list)

    @property
    def tokens(self) -> list[str]:
        """Ids of the requests that got one token, in row order."""
        return [sequence.request_id for sequence, _ in self.sampled]


@dataclass
class StepBudget:
    """What one step may still hold, and what it holds already."""

    tokens: int
    used: int = 0
    prefill_tokens: int = 0
    has_preempted: bool = False
    slots: list[int] = field(default_factory=list)
    query_lens: list[int] = field(default_factory=list)

    def take(self, slot: int, num_tokens: int) -> None:
        self.slots.append(slot)
        self.query_lens.append(num_tokens)
        self.tokens -= num_tokens
        self.used += num_tokens
        self.prefill_tokens += num_tokens

    def take_many(self, slots: SlotArray) -> None:
        """One decode token for each row."""
        self.slots.extend(slots.tolist())
        self.query_lens.extend([1] * len(slots))
        self.tokens -= len(slots)
        self.used += len(slots)


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
