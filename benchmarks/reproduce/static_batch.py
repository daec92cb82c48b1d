"""Latency and throughput of a batch that is prefilled and decoded as one (arXiv 2603.05692)."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.reproduce.nodes import decode_step, prefill_step
from engine.spec.plan import ParallelPlan
from engine.spec.steps import StepShape
from tuner.described.node import Node
from tuner.hardware import paced_timer
from tuner.hardware.physics import ACTIVATION_BYTES
from tuner.hardware.roofline import StageSeconds

# Sequences prefilled in one pass; more passes follow each other through the stages.
PREFILL_SEQS = 8


@dataclass(frozen=True, kw_only=True)
class StaticLoad:
    """``batch`` equal requests per replica; ``kv_bytes`` of each number in the KV cache."""

    batch: int
    input_tokens: int
    output_tokens: int
    kv_bytes: int = ACTIVATION_BYTES

    @property
    def kv_tokens(self) -> int:
        return self.batch * (self.input_tokens + self.output_tokens)


@dataclass(frozen=True, kw_only=True)
class StaticLatency:
    """Seconds until the whole batch has its first token, and per token after that."""

    prefill_s: float
    decode_s: float

    def tokens_per_s(self, load: StaticLoad, num_replicas: int) -> float:
        """``TPS = G_BS * OSL * N_DP / (Lat_prefill + OSL * Lat_decode)``."""
        total_s = self.prefill_s + load.output_tokens * self.decode_s
        return load.batch * load.output_tokens * num_replicas / total_s


def static_latency(node: Node, plan: ParallelPlan, load: StaticLoad) -> StaticLatency:
    """Device times of ``load`` on one replica of ``plan``; whether its KV fits is not asked.

    With several stages prefill passes follow each other, and the decoding batch is split into one
    part per stage.
    """
    seqs = min(PREFILL_SEQS, load.batch)
    passes = load.batch / seqs
    stages = node.timer(plan).stage_seconds(prefill_step(seqs, load.input_tokens))
    part = -(-load.batch // plan.pp)
    context = load.input_tokens + load.output_tokens // 2
    decode = _decode_stages(node, plan, decode_step(part, context), load.kv_bytes)
    return StaticLatency(
        prefill_s=sum(stages) + (passes - 1) * max(stages),
        decode_s=max(sum(decode), plan.pp * max(decode)),
    )


def communication_share(node: Node, plan: ParallelPlan, input_tokens: int) -> float:
    """What collectives take of one prefill pass."""
    shape = prefill_step(PREFILL_SEQS, input_tokens)
    parts = _breakdowns(node, plan, shape)
    return sum(p.communication_s for p in parts) / sum(p.total_s for p in parts)


def send_share(node: Node, plan: ParallelPlan, input_tokens: int) -> float:
    """What point-to-point takes of one prompt's first token, on a plan of stages of one rank."""
    assert plan.stage_size == 1, "all communication between stages of one rank is sends"
    stages = _breakdowns(node, plan, prefill_step(1, input_tokens))
    return sum(s.communication_s for s in stages) / sum(s.total_s for s in stages)


def _decode_stages(node: Node, plan: ParallelPlan, shape: StepShape, kv_bytes: int) -> list[float]:
    """Attention of a large decoding batch is reading its KV: so many bytes, so much time."""
    stages = node.timer(plan).stage_seconds(shape)
    if kv_bytes == ACTIVATION_BYTES:
        return list(stages)
    spared = 1 - kv_bytes / ACTIVATION_BYTES
    parts = _breakdowns(node, plan, shape)
    return [s - spared * part.attention_s for s, part in zip(stages, parts, strict=True)]


def _breakdowns(node: Node, plan: ParallelPlan, shape: StepShape) -> list[StageSeconds]:
    timer = paced_timer(node.hardware, node.model, plan, node.precision)
    return [timer.breakdown(shape, stage) for stage in range(plan.pp)]
