"""Steps made up for timing: any batch of decodes and chunks, told to ranks from scratch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.scheduler.step import step_shape
from engine.spec.modes import Mode
from engine.spec.steps import SlotStart, StepPlan


@dataclass(frozen=True, kw_only=True)
class StepRecipe:
    """``decodes`` sequences with ``decode_context`` tokens cached, and chunks of ``prefill``
    new tokens after ``prefill_context`` cached ones."""

    decodes: int = 0
    decode_context: int = 0
    chunks: int = 0
    prefill: int = 0
    prefill_context: int = 0

    @property
    def num_tokens(self) -> int:
        return self.decodes + self.chunks * self.prefill

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence once the step is done."""
        return max(self.decode_context + 1, self.prefill_context + self.prefill)

    def num_blocks(self, block_size: int) -> int:
        """KV blocks the step needs."""
        return (self.decodes + self.chunks) * -(-self.longest // block_size)


def synthetic_step(
    recipe: StepRecipe, *, step_id: int, mode: Mode, block_size: int, vocab_size: int
) -> StepPlan:
    """A step of ``recipe`` in which every sequence samples greedily.

    Every row starts its slot, so that steps can be repeated and mixed in any order.
    """
    query_lens = np.array([1] * recipe.decodes + [recipe.prefill] * recipe.chunks, dtype=np.int32)
    context_lens = np.array(
        [recipe.decode_context] * recipe.decodes + [recipe.prefill_context] * recipe.chunks,
        dtype=np.int32,
    )
    num_seqs = len(query_lens)
    width = -(-recipe.longest // block_size)
    tables = np.arange(num_seqs * width, dtype=np.int32).reshape(num_seqs, width)
    ids = np.random.default_rng(step_id).integers(3, vocab_size, recipe.num_tokens, dtype=np.int32)
    ends = np.cumsum(query_lens)
    starts = [
        SlotStart(
            slot=row,
            prompt_len=int(context_lens[row] + query_lens[row]),
            token_ids=ids[end - query_lens[row] : end].tobytes(),
            num_computed=int(context_lens[row]),
            blocks=tables[row].tobytes(),
        )
        for row, end in enumerate(ends.tolist())
    ]
    return StepPlan(
        step_id=step_id,
        shape=step_shape(query_lens, context_lens, num_seqs, mode),
        starts=starts,
        slots=np.arange(num_seqs, dtype=np.int32).tobytes(),
        query_lens=query_lens.tobytes(),
    )
