"""Steps made up for timing: any batch of decodes and chunks, with all the arrays ranks read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.plan import Mode
from engine.scheduled import step_shape
from engine.steps import StepPlan


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
    """A step of ``recipe`` in which every sequence samples greedily."""
    query_lens = np.array([1] * recipe.decodes + [recipe.prefill] * recipe.chunks, dtype=np.int32)
    context_lens = np.array(
        [recipe.decode_context] * recipe.decodes + [recipe.prefill_context] * recipe.chunks,
        dtype=np.int32,
    )
    num_seqs = len(query_lens)
    width = -(-recipe.longest // block_size)
    tables = np.arange(num_seqs * width, dtype=np.int32).reshape(num_seqs, width)
    ids = np.random.default_rng(step_id).integers(3, vocab_size, recipe.num_tokens, dtype=np.int32)
    rows = np.arange(num_seqs, dtype=np.int32)
    zeros = np.zeros(num_seqs, dtype=np.int32)
    return StepPlan(
        step_id=step_id,
        shape=step_shape(query_lens, context_lens, num_seqs, mode),
        query_lens=query_lens.tobytes(),
        context_lens=context_lens.tobytes(),
        block_tables=tables.tobytes(),
        token_ids=ids.tobytes(),
        sample_seqs=rows.tobytes(),
        temperatures=zeros.astype(np.float32).tobytes(),
        top_ks=zeros.tobytes(),
        top_ps=np.ones(num_seqs, dtype=np.float32).tobytes(),
        seeds=zeros.astype(np.uint64).tobytes(),
        positions=zeros.tobytes(),
    )
