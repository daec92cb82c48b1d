"""Every split of a node into tensor and pipeline degrees: room, latency and throughput."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchmarks.reproduce.nodes import Load, get_settings, p50, run
from benchmarks.reproduce.static_batch import StaticLoad, static_latency
from benchmarks.reproduce.tables import number, table
from engine.plan import ParallelPlan, infeasible_reasons
from tuner.node import Node

MAX_NUM_SEQS = 4096  # so that KV, not the cap, bounds the batch
MAX_NUM_BATCHED_TOKENS = 8192


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Input and output tokens/s of many requests at once: simulated, and by the paper's formula
    for the largest batch that fits."""

    simulated: float
    by_formula: float


@dataclass(frozen=True, kw_only=True)
class Hybrid:
    """One split, or why it cannot be. Latency of one request of the first load alone;
    throughput of every load, in its order."""

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


def _measure(node: Node, plan: ParallelPlan, floods: tuple[Load, ...]) -> Hybrid:
    if reasons := infeasible_reasons(plan, node.model):
        return Hybrid(plan=plan, weight_bytes=0, kv_tokens=0, reason=reasons[0])
    longest = max(flood.input_tokens + flood.output_tokens for flood in floods)
    memory = node.memory(plan, needed_kv_tokens=longest)
    hybrid = Hybrid(
        plan=plan,
        weight_bytes=memory.weight_bytes,
        kv_tokens=memory.kv_tokens,
        reason=memory.reason,
    )
    if hybrid.reason is not None:
        return hybrid
    settings = get_settings(
        str(plan), max_num_seqs=MAX_NUM_SEQS, max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS
    )
    alone = run(node, settings, replace(floods[0], concurrency=1, requests=2).workload)
    return replace(
        hybrid,
        ttft_ms=p50(alone.ttft_ms.p50),
        tpot_ms=p50(alone.tpot_ms.p50),
        throughput=tuple(
            Throughput(
                simulated=run(node, settings, flood.workload).throughput_total_tokens_per_s,
                by_formula=_static_tokens_per_s(node, plan, flood),
            )
            for flood in floods
        ),
    )


def _static_tokens_per_s(node: Node, plan: ParallelPlan, flood: Load) -> float:
    request_tokens = flood.input_tokens + flood.output_tokens
    load = StaticLoad(
        batch=min(MAX_NUM_SEQS, node.memory(plan).kv_tokens // request_tokens),
        input_tokens=flood.input_tokens,
        output_tokens=flood.output_tokens,
    )
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
