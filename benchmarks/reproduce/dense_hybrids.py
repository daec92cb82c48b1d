"""Every split of a node into tensor and pipeline degrees: room, latency and throughput."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchmarks.reproduce.nodes import Load, p50, run
from benchmarks.reproduce.static_batch import StaticLoad, static_latency
from benchmarks.reproduce.tables import number, table
from engine.spec.feasible import infeasible_reasons
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from tuner.described.node import Node

STEP_TOKENS = 8192


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Input and output tokens/s of many requests at once: simulated, and by the paper's formula
    for the largest batch that fits."""

    simulated: float
    by_formula: float


@dataclass(frozen=True, kw_only=True)
class Hybrid:
    """One split, or why it cannot be. KV tokens beside steps of the first load, and latency of
    one of its requests alone; throughput of every load, in its order."""

    plan: ParallelPlan
    weight_bytes: int
    kv_tokens: int
    reason: str | None
    ttft_ms: float = 0.0
    tpot_ms: float = 0.0
    throughput: tuple[Throughput, ...] = ()


def measure_hybrids(node: Node, devices: int, floods: tuple[Load, ...]) -> list[Hybrid]:
    """All splits ``tp * pp = devices``, widest TP first, under each of ``floods``."""
    degrees = [2**i for i in range(devices.bit_length()) if devices % 2**i == 0]
    plans = [ParallelPlan(tp=t, pp=devices // t) for t in sorted(degrees, reverse=True)]
    return [_measure(node, plan, floods) for plan in plans]


def flood_caps(node: Node, plan: ParallelPlan, flood: Load) -> Caps:
    """As many sequences as are sent and find room for KV: it bounds the batch, and no logits are
    held for sequences that cannot run."""

    def caps(sequences: int) -> Caps:
        return Caps(max_num_seqs=sequences, max_num_batched_tokens=STEP_TOKENS)

    def has_no_room(sequences: int) -> bool:
        needed = sequences * (flood.input_tokens + flood.output_tokens)
        return node.memory(plan, caps=caps(sequences)).kv_tokens < needed

    return caps(max(1, bisect_left(range(1, flood.concurrency + 1), True, key=has_no_room)))


def _measure(node: Node, plan: ParallelPlan, floods: tuple[Load, ...]) -> Hybrid:
    if reasons := infeasible_reasons(plan, node.model):
        return Hybrid(plan=plan, weight_bytes=0, kv_tokens=0, reason=reasons[0])
    caps = [flood_caps(node, plan, flood) for flood in floods]
    memories = [
        node.memory(plan, caps=one, needed_kv_tokens=flood.input_tokens + flood.output_tokens)
        for flood, one in zip(floods, caps, strict=True)
    ]
    hybrid = Hybrid(
        plan=plan,
        weight_bytes=memories[0].weight_bytes,
        kv_tokens=memories[0].kv_tokens,
        reason=next((m.reason for m in memories if m.reason is not None), None),
    )
    if hybrid.reason is not None:
        return hybrid
    settings = [Settings(plan=plan, caps=one) for one in caps]
    alone = run(node, settings[0], replace(floods[0], concurrency=1, requests=2).workload)
    return replace(
        hybrid,
        ttft_ms=p50(alone.ttft_ms.p50),
        tpot_ms=p50(alone.tpot_ms.p50),
        throughput=tuple(
            Throughput(
                simulated=run(node, one, flood.workload).throughput_total_tokens_per_s,
                by_formula=_static_tokens_per_s(node, plan, flood, one.caps.max_num_seqs),
            )
            for flood, one in zip(floods, settings, strict=True)
        ),
    )


def _static_tokens_per_s(node: Node, plan: ParallelPlan, flood: Load, batch: int) -> float:
    load = StaticLoad(
        batch=batch, input_tokens=flood.input_tokens, output_tokens=flood.output_tokens
    )
    request_tokens = flood.input_tokens + flood.output_tokens
    output_tokens_per_s = static_latency(node, plan, load).tokens_per_s(load, 1)
    return output_tokens_per_s * request_tokens / flood.output_tokens


def hybrid_table(hybrids: list[Hybrid], floods: tuple[Load, ...]) -> Iterator[str]:
    """Markdown; throughput as simulated, by the formula in brackets."""
    rates = [f"tokens/s, {f.input_tokens:,}/{f.output_tokens}" for f in floods]
    yield from table(
        ("plan", "weights GB/rank", "KV tokens", "TTFT ms", "TPOT ms", *rates, "why not"),
        [
            (
                str(h.plan),
                number(h.weight_bytes / 1e9),
                f"{h.kv_tokens:,}",
                *(number(v) if h.reason is None else "-" for v in (h.ttft_ms, h.tpot_ms)),
                *_rates(h, len(floods)),
                h.reason or "",
            )
            for h in hybrids
        ],
    )


def _rates(hybrid: Hybrid, count: int) -> list[str]:
    if hybrid.reason is not None:
        return ["-"] * count
    return [f"{number(t.simulated)} ({number(t.by_formula)})" for t in hybrid.throughput]
