"""A step as one rank sees it: everything the layers share, computed once per step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels.attention import AttentionPlan
from engine.kernels.attention_plan import CacheShape, StepTables, plan_attention
from engine.kernels.rotary import RotaryAngles
from engine.models.rope import RopeTable
from engine.parallel.communicator import Communicator
from engine.parallel.mesh import RankGroups
from engine.parallel.sequence import RowExchange, row_exchange
from engine.plan import Mode
from engine.steps import StepPlan, int32


@dataclass(frozen=True, kw_only=True)
class SampledRows:
    """The rows that need logits. ``rows`` picks them where this rank holds all tokens (None:
    all of them, in order); ``exchange`` brings them from every slice in base mode with SP.
    """

    count: int
    rows: Tensor | None
    exchange: RowExchange | None

    def collect(self, x: Tensor, sp_group: Communicator) -> Tensor:
        """``x[rows, d]`` -> ``[count, d]`` on every rank."""
        if self.exchange is not None:
            return self.exchange.run(x, sp_group)
        return x if self.rows is None else x.index_select(0, self.rows)


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """``num_tokens`` real tokens in the step, ``num_rows`` rows of the residual stream here.

    ``token_ids`` i8[num_rows]: the tokens this rank embeds, padding as token 0.
    """

    mode: Mode
    num_tokens: int
    num_rows: int
    token_ids: Tensor
    angles: RotaryAngles
    attention: AttentionPlan
    sampled: SampledRows


@dataclass(frozen=True, kw_only=True)
class BatchBuilder:
    """Turns step plans into batches for one rank."""

    shape: CacheShape
    rope: RopeTable
    groups: RankGroups

    def build(self, step: StepPlan) -> StepBatch:
        """The batch of ``step``, on the rank's device."""
        tables = step_tables(step)
        num_tokens = int(tables.query_lens.sum())
        slices = self.groups.sp.size if step.mode is Mode.BASE else 1
        num_rows = -(-num_tokens // slices)
        sample_seqs = int32(step.sample_seqs)
        last_rows = (tables.starts + tables.query_lens - 1)[sample_seqs]
        return StepBatch(
            mode=step.mode,
            num_tokens=num_tokens,
            num_rows=num_rows,
            token_ids=self._token_ids(step, num_rows, slices),
            angles=self.rope.angles(self._on_device(tables.positions)),
            attention=plan_attention(tables, self.shape),
            sampled=self._sampled(last_rows, num_tokens, num_rows, slices),
        )

    def _token_ids(self, step: StepPlan, num_rows: int, slices: int) -> Tensor:
        ids = self._on_device(int32(step.token_ids).astype(np.int64))
        if slices == 1:
            return ids
        first = self.groups.sp.rank * num_rows
        mine = ids[first : first + num_rows]
        return F.pad(mine, (0, num_rows - len(mine)))

    def _sampled(
        self, rows: npt.NDArray[np.int64], num_tokens: int, num_rows: int, slices: int
    ) -> SampledRows:
        count, exchange, picked = len(rows), None, None
        if count and slices > 1:
            exchange = row_exchange(
                rows,
                rows_per_rank=num_rows,
                rank=self.groups.sp.rank,
                size=slices,
                device=self.shape.device,
            )
        elif not np.array_equal(rows, np.arange(num_tokens)):
            picked = self._on_device(rows)
        return SampledRows(count=count, rows=picked, exchange=exchange)

    def _on_device(self, array: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(self.shape.device, non_blocking=True)


def step_tables(step: StepPlan) -> StepTables:
    """The arrays of ``step``, widened for index arithmetic."""
    query_lens = int32(step.query_lens).astype(np.int64)
    return StepTables(
        query_lens=query_lens,
        context_lens=int32(step.context_lens).astype(np.int64),
        block_tables=int32(step.block_tables).reshape(len(query_lens), -1),
    )
