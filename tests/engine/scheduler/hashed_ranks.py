"""Ranks without a model: the next token is a hash of all tokens that a row can read in its blocks.

Whatever goes wrong between scheduler, message and rank (a block too early reused, a wrong prefix,
a token not back-filled) changes what a row reads, and with it every later token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from engine.spec.steps import StepPlan, StepResult
from engine.wire.rank_table import RankTable


def next_token(tokens: Sequence[int], vocab_size: int) -> int:
    """The token that follows ``tokens``."""
    raw = np.array(tokens, np.int64).tobytes()
    return int.from_bytes(blake2b(raw, digest_size=8).digest(), "little") % vocab_size


class HashedRanks:
    """Runs step plans in order on one table, as every rank of a replica would."""

    def __init__(
        self, *, num_slots: int, max_blocks: int, num_blocks: int, block_size: int, vocab_size: int
    ) -> None:
        self._table = RankTable(num_slots=num_slots, max_blocks=max_blocks)
        self._kv = np.full(num_blocks * block_size, -1, np.int64)
        self._last_token = np.full(num_slots, -1, np.int64)
        self._block_size = block_size
        self._vocab_size = vocab_size
        self._steps: deque[StepPlan] = deque()

    def submit(self, step: StepPlan) -> None:
        self._steps.append(step)

    def collect(self) -> StepResult:
        return self._run(self._steps.popleft())

    def _run(self, step: StepPlan) -> StepResult:
        rows = self._table.apply(step)
        tokens = rows.token_ids.astype(np.int64)
        tokens[rows.placeholder_at] = self._last_token[rows.placeholder_slots]
        cells = [
            self._cells(rows.block_tables[n], int(end))
            for n, end in enumerate(rows.context_lens + rows.query_lens)
        ]
        starts = np.cumsum(rows.query_lens) - rows.query_lens
        for n, query_len in enumerate(rows.query_lens.tolist()):
            new = tokens[starts[n] : starts[n] + query_len]
            self._kv[cells[n][-query_len:]] = new
        ids = [next_token(self._kv[cells[n]].tolist(), self._vocab_size) for n in rows.sample_rows]
        self._last_token[rows.sample_slots] = ids
        return StepResult(step_id=step.step_id, token_ids=np.array(ids, np.int32).tobytes())

    def _cells(
        self, blocks: np.ndarray[tuple[int], np.dtype[np.int32]], end: int
    ) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        at = np.arange(end)
        block = blocks[at // self._block_size].astype(np.int64)
        assert (block >= 0).all(), "a row reads beyond its blocks"
        return block * self._block_size + at % self._block_size
