"""Dense deployment (arXiv 2603.05692): TP as the latency knob, PP as the throughput knob.

Llama-3.1-70B inside one node of eight devices; the 405B model on 8xH200 and 16xH100.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.reproduce.dense_hybrids import Hybrid, hybrid_table, measure_hybrids
from benchmarks.reproduce.dense_ratios import (
    BACKEND,
    BIG_MODEL,
    CASES,
    LONG,
    MODEL,
    RatioCase,
    ratio_sections,
)
from benchmarks.reproduce.nodes import Load, device_seconds, get_node, prefill_step
from benchmarks.reproduce.static_batch import StaticLoad, send_share, static_latency
from benchmarks.reproduce.tables import Claim, claim_table, number, table
from engine.spec.plan import ParallelPlan
from tuner.described.node import Node

DATA_SETS = {
    "LongAlpaca": (9092, 208),
    "BBH+GSM8K+HumanEval": (106, 26),
    "MLPerf long": (9428, 684),
}
SHORT = "BBH+GSM8K+HumanEval"
PUBLISHED_SEND_SHARE = 0.005
CAPACITY_NODES = (("8xh100", "bf16"), ("8xh200", "bf16"), ("8xh200", "fp8"))
BIG_NODES = (("8xh200", "fp8"), ("8xh200", "bf16"), ("16xh100", "fp8"), ("16xh100", "bf16"))
SLOW_LINKS_GB = (450, 200, 100, 64, 32, 16, 8)


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is simulated; smaller for a smoke test."""

    requests: int = 512
    big_requests: int = 256
    short_requests: int = 4096
    batches: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)
    ratio_cases: tuple[RatioCase, ...] = CASES
    link_speeds_gb: tuple[int, ...] = SLOW_LINKS_GB
    big_nodes: tuple[tuple[str, str], ...] = BIG_NODES


def sections(size: Size) -> Iterator[str]:
    """The report's lines."""
    yield from ratio_sections(size.ratio_cases)
    yield from _formula()
    yield from _pipelines()
    yield from _capacity()
    yield from _hybrids(size)
    yield from _link_speed(size)
    yield from _batch_size(size)
    yield from _big_model(size)
    yield from _notes()


# -- throughput of a static batch ----------------------------------------------------------------


def _formula() -> Iterator[str]:
    yield "## Throughput of a static batch"
    yield ""
    yield "`TPS = G_BS * OSL * N_DP / (Lat_prefill + OSL * Lat_decode)` on 8xh200, bf16, with the"
    yield "largest batch (at most 1,024) that fits each replica: output tokens/s of the node"
    yield "(batch)."
    yield ""
    node = get_node("8xh200", MODEL, "bf16", BACKEND)
    plans = [ParallelPlan(dp=8 // (t * p), tp=t, pp=p) for t, p in _degrees(8)]
    rows = []
    for name, (inputs, outputs) in DATA_SETS.items():
        cells = [_formula_cell(node, plan, inputs, outputs) for plan in plans]
        rows.append((f"{name} {inputs:,}/{outputs}", *cells))
    yield from table(("data set", *(str(plan) for plan in plans)), rows)


def _degrees(most: int) -> Iterator[tuple[int, int]]:
    """(tp, pp) of one replica on 2 to ``most`` devices."""
    powers = [2**i for i in range(most.bit_length())]
    yield from ((t, p) for t in powers for p in powers if 2 <= t * p <= most)


def _formula_cell(node: Node, plan: ParallelPlan, inputs: int, outputs: int) -> str:
    room = node.memory(plan).kv_tokens // (inputs + outputs)
    if not room:
        return "-"
    load = StaticLoad(batch=min(1024, room), input_tokens=inputs, output_tokens=outputs)
    latency = static_latency(node, plan.replica, load)
    return f"{number(latency.tokens_per_s(load, plan.dp))} ({load.batch})"


# -- pipelines -----------------------------------------------------------------------------------


def _pipelines() -> Iterator[str]:
    yield "## Point-to-point of pipelines"
    yield ""
    node = get_node("8xh200", MODEL, "bf16", BACKEND)
    shares = {
        (pp, tokens): send_share(node, ParallelPlan(pp=pp), tokens)
        for pp in (2, 4, 8)
        for tokens in (106, 2048, 9092)
    }
    rows = [(f"pp={pp}, {tokens:,} tokens", f"{v:.2%}") for (pp, tokens), v in shares.items()]
    yield from table(("one prompt on 8xh200, bf16", "share of TTFT"), rows)
    worst = max(shares.values())
    yield from claim_table(
        [
            Claim(
                what="PP point-to-point is under 0.5 % of TTFT",
                found=f"at most {worst:.2%}",
                holds=worst < PUBLISHED_SEND_SHARE,
            )
        ]
    )


def _capacity() -> Iterator[str]:
    yield "## Room for KV"
    yield ""
    yield "70B: thousands of KV tokens of one replica (per device); `-`: the weights do not fit."
    yield ""
    rows: list[tuple[str, ...]] = []
    per_device: dict[tuple[str, str, int], list[float]] = {}
    for hardware, precision in CAPACITY_NODES:
        node = get_node(hardware, MODEL, precision, BACKEND)
        for tp in (1, 2, 4):
            cells = []
            for pp in (1, 2, 4, 8):
                plan = ParallelPlan(tp=tp, pp=pp)
                if plan.world_size > node.hardware.count:
                    cells.append("")
                    continue
                tokens = node.memory(plan).kv_tokens
                per_device.setdefault((hardware, precision, tp), []).append(
                    tokens / plan.world_size
                )
                text = f"{tokens / 1e3:,.0f} ({tokens / plan.world_size / 1e3:,.0f})"
                cells.append(text if tokens else "-")
            rows.append((f"{hardware} {precision}, tp={tp}", *cells))
    yield from table(("", *(f"pp={pp}" for pp in (1, 2, 4, 8))), rows)
    yield from claim_table(
        [
            Claim(
                what="weights per GPU fall with the depth, so KV space per GPU grows",
                found=f"in {sum(map(_rises, per_device.values()))} of {len(per_device)} rows",
                holds=all(map(_rises, per_device.values())),
            )
        ]
    )


def _hybrids(size: Size) -> Iterator[str]:
    yield "## Hybrids of TP and PP, 70B on 8xh100"
    yield ""
    yield f"Simulated, bf16: one request of {LONG.input_tokens:,} in / {LONG.output_tokens} out"
    yield f"alone, and input and output tokens/s of {size.requests:,} of them at once and of"
    yield f"{size.short_requests:,} short ones; in brackets by the paper's formula, for a static"
    yield "batch as large as fits."
    yield ""
    node = get_node("8xh100", MODEL, "bf16", BACKEND)
    yield from _hybrids_of(node, size, size.requests)


def _hybrids_of(node: Node, size: Size, requests: int) -> Iterator[str]:
    floods = (_flood(requests, "LongAlpaca"), _flood(size.short_requests, SHORT))
    hybrids = measure_hybrids(node, node.hardware.count, floods)
    yield from hybrid_table(hybrids, floods)
    feasible = [str(h.plan) for h in hybrids if h.reason is None]
    yield f"Feasible: {'; '.join(feasible) or 'none'}."
    yield ""
    yield from claim_table(hybrid_claims(node, hybrids))
    yield from _best_hybrids(hybrids, floods)


def _best_hybrids(hybrids: list[Hybrid], floods: tuple[Load, ...]) -> Iterator[str]:
    able = [h for h in hybrids if h.reason is None]
    if not able:
        return
    found = []
    for flood, rates in zip(floods, zip(*(h.throughput for h in able), strict=True), strict=True):
        _, best = max((rate.simulated, str(h.plan)) for rate, h in zip(rates, able, strict=True))
        found.append(f"{flood.input_tokens:,}/{flood.output_tokens}: {best}")
    yield f"Most tokens/s, simulated: {'; '.join(found)}."
    yield ""


def _flood(requests: int, data_set: str) -> Load:
    inputs, outputs = DATA_SETS[data_set]
    return Load(concurrency=requests, input_tokens=inputs, output_tokens=outputs, requests=requests)


def hybrid_claims(node: Node, hybrids: list[Hybrid]) -> Iterator[Claim]:
    """Latency follows TP, throughput the depth of the pipeline, over feasible hybrids whose
    tensor groups lie inside one node."""
    inside = node.hardware.device.devices_per_node
    able = [h for h in hybrids if h.reason is None and h.plan.tp <= inside]
    if len(able) < 2:
        yield Claim(what="several hybrids fit", found=f"{len(able)}", holds=False)
        return
    said = "throughput follows the depth of the pipeline"
    for what, values in (
        ("latency follows TP: TTFT grows as TP falls", [h.ttft_ms for h in able]),
        ("latency follows TP: TPOT grows as TP falls", [h.tpot_ms for h in able]),
        (f"{said}, long requests", [h.throughput[0].simulated for h in able]),
        (f"{said}, short requests", [h.throughput[1].simulated for h in able]),
        (f"{said}, short requests, by its formula", [h.throughput[1].by_formula for h in able]),
    ):
        found = ", ".join(f"{h.plan}: {number(v)}" for h, v in zip(able, values, strict=True))
        yield Claim(what=what, found=found, holds=_rises(values))


def _rises(values: list[float]) -> bool:
    return all(a <= b for a, b in pairwise(values))


# -- sweeps --------------------------------------------------------------------------------------


def _link_speed(size: Size) -> Iterator[str]:
    yield "## Link speed: when TP stops paying in prefill"
    yield ""
    yield "70B in FP8 on 8xh200 with other links (GB/s per device and direction), one prompt of"
    yield "4,096 tokens: ms."
    yield ""
    degrees = (1, 2, 4, 8)
    found = {
        speed: [
            1e3
            * device_seconds(
                get_node(f"8xh200@{speed}gb/s", MODEL, "fp8", BACKEND),
                ParallelPlan(tp=t),
                prefill_step(1, 4096),
            )
            for t in degrees
        ]
        for speed in size.link_speeds_gb
    }
    yield from table(
        ("GB/s", *(f"TP{t}" for t in degrees), "TP2 slower than TP1"),
        [
            (str(speed), *(number(v) for v in ms), "yes" if ms[1] > ms[0] else "no")
            for speed, ms in found.items()
        ],
    )
    slow = [speed for speed, ms in found.items() if ms[1] > ms[0]]
    yield from claim_table(
        [
            Claim(
                what="on slow links TP2 can be slower than TP1 in prefill",
                found=f"at {max(slow)} GB/s and below" if slow else "at none of these",
                holds=bool(slow) and max(slow) < size.link_speeds_gb[0],
            )
        ]
    )


def _batch_size(size: Size) -> Iterator[str]:
    yield "## Batch size"
    yield ""
    yield "70B in bf16 on 8xh200, one replica, 9,092 in / 208 out, by the formula: output tokens/s;"
    yield "(none) where its KV does not fit."
    yield ""
    node = get_node("8xh200", MODEL, "bf16", BACKEND)
    plans = [ParallelPlan(tp=t, pp=8 // t) for t in (8, 4, 2, 1)]
    rows = []
    for batch in size.batches:
        load = StaticLoad(batch=batch, input_tokens=9092, output_tokens=208)
        cells = [
            number(static_latency(node, plan, load).tokens_per_s(load, 1))
            if load.kv_tokens <= node.memory(plan).kv_tokens
            else "(none)"
            for plan in plans
        ]
        rows.append((str(batch), *cells))
    yield from table(("batch", *(str(plan) for plan in plans)), rows)


# -- 405B ----------------------------------------------------------------------------------------


def _big_model(size: Size) -> Iterator[str]:
    yield "## Llama-3.1-405B"
    yield ""
    for hardware, precision in size.big_nodes:
        node = get_node(hardware, BIG_MODEL, precision, BACKEND)
        yield f"### {hardware}, {precision}"
        yield ""
        yield from _hybrids_of(node, size, size.big_requests)


def _notes() -> Iterator[str]:
    yield "## How this was set up"
    yield ""
    yield "* Ratios, formula and sweeps are device times; hybrids run the scheduler with the `vllm`"
    yield "  profile, 8,192 tokens a step and as many sequences as are sent at once. Logits of"
    yield "  4,096 short requests take 20 GB a rank to sample, which leaves 405B in bf16 little for"
    yield "  KV."
    yield "* The ratios compare equal batches on every degree, as published; whether their KV fits"
    yield "  TP2 and TP4 is not asked, they are only timed."
    yield "* 16xh100 is two nodes of eight; a tensor group of 16 lies across both and is left out"
    yield "  of what is said about TP."
    yield "* Throughput follows the depth while the batch may grow: every stage reads its weights"
    yield "  once for each part of the batch, and room for KV bounds the batch; where parts become"
    yield "  too small, a shallower hybrid is best."
    yield ""
