"""A step as one rank sees it: everything the layers share, computed once per step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from engine.kernels.attention_plan import CacheShape, StepTables
from engine.kernels.layer import LayerKernels, StepAttention
from engine.kernels.transfer import to_device
from engine.parallel.communicator import Communicator
from engine.parallel.mesh import RankGroups
from engine.parallel.sequence import RowExchange, row_exchange
from engine.spec.modes import Mode
from engine.wire.rank_table import Int64Array, StepRows


@dataclass(frozen=True, kw_only=True)
class PickedRows:
    """Rows that need logits. ``rows`` picks this rank's part of them (None: all its rows are
    wanted, in order); ``exchange`` brings the parts together where each rank holds a slice.
    """

    count: int
    rows: Tensor | None
    exchange: RowExchange | None

    def part(self, x: Tensor) -> Tensor:
        """Of ``x[rows, d]`` what this rank brings, as many rows as every other one."""
        return x if self.rows is None else x.index_select(0, self.rows)

    def collect(self, part: Tensor) -> Tensor:
        """Every rank's :meth:`part` -> ``[count, d]`` on each of them."""
        return part if self.exchange is None else self.exchange.run(part)


@dataclass(frozen=True, kw_only=True)
class Placeholders:
    """Which of the tokens this rank embeds are samples of earlier steps.

    Row ``rows`` i8[P] gets the last token of slot ``slots`` i8[P].
    """

    rows: Tensor
    slots: Tensor


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """``num_tokens`` real tokens in the step, ``num_rows`` rows of the residual stream here.

    ``token_ids`` i8[num_rows]: the tokens this rank embeds, padding as token 0; on the first stage
    only. ``sample_slots`` i8[R] are the slots of the sampled rows. ``scored`` are the rows whose
    logits score the prompts' own tokens ``scored_ids`` i8[Q].
    """

    mode: Mode
    num_tokens: int
    num_rows: int
    token_ids: Tensor
    placeholders: Placeholders | None
    attention: StepAttention
    sampled: PickedRows
    sample_slots: Tensor
    scored: PickedRows
    scored_ids: Tensor

    @property
    def finished(self) -> PickedRows | None:
        """The rows that go through all of the last layer; None: every row."""
        return None if self.scored.count else self.sampled

    def fill_placeholders(self, last_tokens: Tensor) -> None:
        """Complete ``token_ids`` with the tokens sampled last, i8[num_slots]."""
        if self.placeholders is not None:
            tokens = last_tokens.index_select(0, self.placeholders.slots)
            self.token_ids.index_copy_(0, self.placeholders.rows, tokens)


@dataclass(frozen=True, kw_only=True)
class BatchBuilder:
    """Turns the rows of steps into batches for one rank."""

    shape: CacheShape
    kernels: LayerKernels
    groups: RankGroups

    def build(self, rows: StepRows, mode: Mode) -> StepBatch:
        """The batch of ``rows`` on the rank's device; its placeholders are filled later."""
        tables = step_tables(rows, self.shape.block_size)
        num_tokens = len(rows.token_ids)
        slices = self.groups.sequence(mode)
        num_rows = -(-self.kernels.padded_rows(num_tokens) // slices.size)
        first = slices.rank * num_rows
        is_first_stage = self.groups.stage == 0
        last_rows = (tables.starts + tables.query_lens - 1)[rows.sample_rows]
        return StepBatch(
            mode=mode,
            num_tokens=num_tokens,
            num_rows=num_rows,
            token_ids=self._token_ids(rows, first, num_rows if is_first_stage else 0),
            placeholders=self._placeholders(rows, first, num_rows) if is_first_stage else None,
            attention=self.kernels.step(tables, num_rows * slices.size),
            sampled=self._picked(last_rows, num_tokens, num_rows, slices),
            sample_slots=self._on_device(rows.sample_slots.astype(np.int64)),
            scored=self._picked(rows.scored_at, num_tokens, num_rows, slices),
            scored_ids=self._on_device(rows.scored_ids.astype(np.int64)),
        )

    def _token_ids(self, rows: StepRows, first: int, num_rows: int) -> Tensor:
        ids = np.zeros(num_rows, np.int64)
        mine = rows.token_ids[first : first + num_rows]
        ids[: len(mine)] = mine
        return self._on_device(ids)

    def _placeholders(self, rows: StepRows, first: int, num_rows: int) -> Placeholders | None:
        # The places ascend, so those in this rank's slice of the tokens are one run.
        begin, end = np.searchsorted(rows.placeholder_at, (first, first + num_rows))
        if begin == end:
            return None
        return Placeholders(
            rows=self._on_device(rows.placeholder_at[begin:end] - first),
            slots=self._on_device(rows.placeholder_slots[begin:end]),
        )

    def _picked(
        self, rows: Int64Array, num_tokens: int, num_rows: int, slices: Communicator
    ) -> PickedRows:
        count, exchange, picked = len(rows), None, None
        if count and slices.size > 1:
            exchange = row_exchange(
                rows, rows_per_rank=num_rows, group=slices, device=self.shape.device
            )
            picked = exchange.mine
        elif count != num_tokens:  # else it is every row once, in order
            picked = self._on_device(rows)
        return PickedRows(count=count, rows=picked, exchange=exchange)

    def _on_device(self, array: Int64Array) -> Tensor:
        return to_device(array, self.shape.device)


def step_tables(rows: StepRows, block_size: int) -> StepTables:
    """The arrays of ``rows``, widened for index arithmetic."""
    tables = StepTables(
        query_lens=rows.query_lens.astype(np.int64),
        context_lens=rows.context_lens.astype(np.int64),
        block_tables=rows.block_tables,
    )
    num_seqs, width = rows.block_tables.shape
    wanted = -(-tables.totals // block_size)
    last_blocks = rows.block_tables[np.arange(num_seqs), np.minimum(wanted, width) - 1]
    is_fine = (wanted <= width) & (last_blocks >= 0)
    assert is_fine.all(), (
        f"slot {rows.slots[~is_fine][0]} has too few blocks for {tables.totals[~is_fine][0]} "
        f"tokens; {wanted[~is_fine][0]} are needed"
    )
    return tables
