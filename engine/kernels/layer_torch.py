"""A layer's operations in torch: the reference, and the version for CUDA."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from engine.kernels.attention import AttentionPlan, attention
from engine.kernels.attention_plan import StepTables, plan_attention
from engine.kernels.kv_cache import LayerCache
from engine.kernels.layer import HeadShape
from engine.kernels.rms_norm import rms_norm
from engine.kernels.rotary import RotaryAngles, angles_of, rotary
from engine.kernels.silu_mul import silu_mul
from engine.kernels.transfer import to_device


@dataclass(frozen=True, kw_only=True)
class TorchAttention:
    """See :class:`engine.kernels.layer.StepAttention`; ``num_tokens`` are real."""

    shape: HeadShape
    num_tokens: int
    angles: RotaryAngles
    plan: AttentionPlan

    def attend(self, qkv: Tensor, *, qk_norm: Tensor | None, cache: LayerCache) -> Tensor:
        num_q, num_kv = self.shape.num_q, self.shape.cache.num_kv_heads
        heads = qkv.view(qkv.shape[0], num_q + 2 * num_kv, -1)[: self.num_tokens]
        rotated = heads[:, : num_q + num_kv]
        if qk_norm is not None:
            rotated = rms_norm(rotated, qk_norm, self.shape.rms_eps)
        rotated = rotary(rotated, self.angles)
        attended = attention(
            rotated[:, :num_q],
            rotated[:, num_q:],
            heads[:, num_q + num_kv :],
            cache=cache,
            plan=self.plan,
        )
        if self.num_tokens == qkv.shape[0]:
            return attended
        padded = attended.new_zeros(qkv.shape[0], attended.shape[1])
        padded[: self.num_tokens] = attended
        return padded


@dataclass(frozen=True, kw_only=True)
class TorchKernels:
    """See :class:`engine.kernels.layer.LayerKernels`; ``rope`` as
    :func:`engine.models.rope.rope_table` makes it.
    """

    shape: HeadShape
    rope: Tensor

    @property
    def name(self) -> str:
        return "torch"

    def add_norm(self, x: Tensor, delta: Tensor | None, weight: Tensor) -> Tensor:
        if delta is not None:
            x += delta
        return rms_norm(x, weight, self.shape.rms_eps)

    def silu_mul(self, gate_up: Tensor, num_blocks: int) -> Tensor:
        return silu_mul(gate_up, num_blocks)

    def padded_rows(self, num_tokens: int) -> int:
        return num_tokens

    def step(self, tables: StepTables, num_rows: int) -> TorchAttention:  # noqa: ARG002
        positions = to_device(tables.positions, self.shape.cache.device)
        return TorchAttention(
            shape=self.shape,
            num_tokens=len(tables.positions),
            angles=angles_of(self.rope, positions),
            plan=plan_attention(tables, self.shape.cache),
        )
