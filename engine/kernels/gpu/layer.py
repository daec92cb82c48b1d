"""A layer's operations as Triton kernels; see :class:`engine.kernels.layer.LayerKernels`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.kernels.attention_plan import StepTables
from engine.kernels.gpu import rows
from engine.kernels.gpu.decode import decode
from engine.kernels.gpu.heads import place_heads
from engine.kernels.gpu.prefill import prefill, tile_tokens
from engine.kernels.gpu.tables import DeviceTables, StepShape, pack
from engine.kernels.kv_cache import LayerCache
from engine.kernels.layer import HeadShape
from engine.kernels.transfer import to_device

# What the kernels compute in, beside float32 for sums.
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class TritonAttention:
    """See :class:`engine.kernels.layer.StepAttention`."""

    shape: HeadShape
    rope: Tensor
    tables: DeviceTables

    def attend(self, qkv: Tensor, *, qk_norm: Tensor | None, cache: LayerCache) -> Tensor:
        qkv = qkv.contiguous()
        out = qkv.new_empty(qkv.shape[0], self.shape.num_q * self.shape.cache.head_dim)
        place_heads(
            qkv,
            out,
            qk_norm=qk_norm,
            rope=self.rope,
            cache=cache,
            tables=self.tables,
            shape=self.shape,
        )
        decode(qkv, out, cache=cache, tables=self.tables, shape=self.shape)
        prefill(qkv, out, cache=cache, tables=self.tables, shape=self.shape)
        return out


@dataclass(frozen=True, kw_only=True)
class TritonKernels:
    """``rope`` as :func:`engine.models.rope.rope_table` makes it. Steps are padded to the next of
    ``graph_rows`` (ascending), for which there are CUDA graphs.
    """

    shape: HeadShape
    rope: Tensor
    graph_rows: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return "Triton"

    @property
    def tile_tokens(self) -> int:
        """New tokens of one sequence that one program attends for."""
        return tile_tokens(self.shape.num_q, self.shape.cache.num_kv_heads)

    def add_norm(self, x: Tensor, delta: Tensor | None, weight: Tensor) -> Tensor:
        return rows.add_norm(x, delta, weight, self.shape.rms_eps)

    def silu_mul(self, gate_up: Tensor, num_blocks: int) -> Tensor:
        return rows.silu_mul(gate_up, num_blocks)

    def padded_rows(self, num_tokens: int) -> int:
        return next((rows for rows in self.graph_rows if rows >= num_tokens), num_tokens)

    def graph_shape(self, num_rows: int, *, has_prefill: bool) -> StepShape:
        """The shape of every step of ``num_rows`` padded rows that has a graph."""
        return StepShape.largest(num_rows, tile_tokens=self.tile_tokens, has_prefill=has_prefill)

    def step(self, tables: StepTables, num_rows: int) -> TritonAttention:
        if num_rows in self.graph_rows:
            has_prefill = bool((tables.query_lens > 1).any())
            return self.step_of(tables, self.graph_shape(num_rows, has_prefill=has_prefill))
        shape = StepShape.of(tables, num_rows=num_rows, tile_tokens=self.tile_tokens)
        return self.step_of(tables, shape)

    def step_of(self, tables: StepTables, shape: StepShape) -> TritonAttention:
        """Attention of a step padded to ``shape``."""
        array = pack(tables, shape, block_size=self.shape.cache.block_size)
        return self.over(DeviceTables.over(to_device(array, self.shape.cache.device), shape))

    def over(self, tables: DeviceTables) -> TritonAttention:
        """Attention of whatever step ``tables`` hold when it runs."""
        return TritonAttention(shape=self.shape, rope=self.rope, tables=tables)
