"""Albireo (arXiv 2606.01927): where a step's time goes, and how far tensor parallelism pays.

Qwen2.5 in bfloat16 on H100, vLLM 0.11.2. *Removed* means as the paper's mechanisms do: host work
hidden behind the step before, each rank samples its share of the rows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.reproduce.nodes import (
    SEED,
    Load,
    decode_step,
    get_node,
    get_settings,
    p50,
)
from benchmarks.reproduce.overheads import (
    ALL_ROWS,
    BACKEND,
    BATCH,
    HARDWARE,
    MODEL,
    PRECISION,
    PUBLISHED,
    Overheads,
    fitted_overheads,
    published_overheads,
)
from benchmarks.reproduce.sampled import (
    predicted_sampling,
)
from benchmarks.reproduce.tables import Claim, claim_table, number, table, yes
from engine.spec.errors import PlanError
from engine.spec.measurement import Measurement
from engine.spec.plan import ParallelPlan
from tuner.described.node import Node
from tuner.spec.errors import TunerError
from tuner.work.scaling import (
    Amdahl,
    StepParts,
    find_optimal_degree,
    fit_amdahl,
    rule_of_thumb_degree,
)

DEVICES = 8
DEGREES = (1, 2, 4, 8)
DEGREE = 4
SHARE_POINTS = 0.05
CONTEXTS = (1024, 2048, 4096)
CONTEXT = 2048
MODELS = ("qwen2.5-7b", "qwen2.5-14b", "qwen2.5-32b", "qwen2.5-72b")
PUBLISHED_GAIN = 1.9


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is simulated; smaller for a smoke test."""

    requests: int = 1500
    lengths: tuple[tuple[int, int], ...] = ((1155, 211), (512, 1024))
    max_num_seqs: int = 1024
    loads: tuple[int, ...] = (8, 32, 128, 512)
    models: tuple[str, ...] = MODELS


def sections(size: Size) -> Iterator[str]:
    """The report's lines."""
    yield from _breakdown()
    yield from _shares_at_one()
    yield from _against_degree(size)
    yield from _against_load(size)
    yield from _rule(size)
    yield from _notes()


# -- one step ------------------------------------------------------------------------------------


def predicted_parts(
    degree: int, context: int, model: str = MODEL, *, has_sampler: bool = True
) -> StepParts:
    """One decode step of the paper's batch: the profile's host times, and the estimate of a
    sampler on the device, which the served runs behind the profile may hold already."""
    node, plan = get_node(HARDWARE, model, PRECISION, BACKEND), ParallelPlan(tp=degree)
    parts = node.timer(plan).breakdown(decode_step(BATCH, context))
    sampler_s = predicted_sampling(node, ALL_ROWS)(plan, BATCH) if has_sampler else 0.0
    return StepParts(
        scheduling_s=parts.schedule_s,
        input_s=parts.input_s,
        forward_s=parts.forward_s,
        sampling_s=parts.sample_s + sampler_s,
        output_s=parts.output_s,
    )


def _breakdown() -> Iterator[str]:
    yield f"## One step at TP={DEGREE}, batch {BATCH}, {MODEL}"
    yield ""
    yield "The paper does not give its context length. Host times: the `vllm` profile, fitted as"
    yield "one number per step and sequence; *with sampler*: and top-p by sorting on the device,"
    yield "estimated from its memory traffic. The served runs behind the profile sampled too (how"
    yield "is not recorded), so the truth lies between both."
    yield ""
    cases = [(context, has_sampler) for context in CONTEXTS for has_sampler in (False, True)]
    found = {case: predicted_parts(DEGREE, case[0], has_sampler=case[1]) for case in cases}
    rows = [
        (f"context {context:,}{', with sampler' if has_sampler else ''}", *_parts_row(parts))
        for (context, has_sampler), parts in found.items()
    ]
    rows.append(("published", *_parts_row(PUBLISHED)))
    head = ("", "scheduling", "input", "forward", "sampling", "output", "step ms")
    yield from table((*head, "non-scalable", "points off"), rows)
    points = f"{100 * SHARE_POINTS:.0f} points of the published share"
    for has_sampler in (False, True):
        near = [
            f"{context:,}"
            for context in CONTEXTS
            if abs(found[context, has_sampler].non_scalable_share - PUBLISHED.non_scalable_share)
            <= SHARE_POINTS
        ]
        name = "With the sampler" if has_sampler else "Without it"
        yield f"* {name}, within {points} at context {', '.join(near) or '- none'}."
    yield ""
    yield "Scheduling and input in the paper are of vLLM 0.11.2; the runs behind the profile are of"
    yield "0.10.2 and 0.12.0. The forward pass reaches the paper's"
    yield f"{1e3 * PUBLISHED.forward_s:.0f} ms at a context of {_context_of_forward():,} tokens."
    yield ""


def _context_of_forward() -> int:
    """Context at which the forward pass is as long as published, to 64 tokens."""
    contexts = range(64, 65_536, 64)
    return contexts[
        bisect_left(
            contexts,
            PUBLISHED.forward_s,
            key=lambda context: predicted_parts(DEGREE, context).forward_s,
        )
    ]


def _parts_row(parts: StepParts) -> Iterator[str]:
    for seconds in (
        parts.scheduling_s,
        parts.input_s,
        parts.forward_s,
        parts.sampling_s,
        parts.output_s,
        parts.total_s,
    ):
        yield f"{1e3 * seconds:.1f}"
    share = parts.non_scalable_share
    yield f"{share:.0%}"
    yield f"{100 * (share - PUBLISHED.non_scalable_share):+.0f}"


def _shares_at_one() -> Iterator[str]:
    yield "## Amdahl by task"
    yield ""
    yield f"`A = 1/(P1 + P2 + P4 + P5 + P3/t)`, batch {BATCH}, context {CONTEXT:,}. *Law*: from"
    yield "the shares at t = 1; *simulated*: the step at t itself, where collectives and small"
    yield "operations keep the forward pass from scaling; *fitted*: the law nearest to all of them."
    yield ""
    at_one = predicted_parts(1, CONTEXT)
    law = Amdahl.of_step(at_one, 1)
    published = Amdahl.of_step(PUBLISHED, DEGREE)
    simulated = {t: predicted_parts(t, CONTEXT).total_s for t in DEGREES}
    fitted = fit_amdahl(simulated)
    yield from table(
        ("t", "step ms", "simulated A", "law", "fitted", "law from the published step"),
        [
            (
                str(t),
                f"{1e3 * seconds:.1f}",
                *(f"{simulated[1] / seconds:.2f}",),
                *(f"{one.speedup(t):.2f}" for one in (law, fitted, published)),
            )
            for t, seconds in simulated.items()
        ],
    )
    yield f"Share that does not scale, at t = 1: {law.serial_share:.0%} by parts, "
    yield f"{fitted.serial_share:.0%} by the fit, {published.serial_share:.0%} published (if its"
    yield f"forward pass scaled perfectly to t = {DEGREE})."
    yield ""


# -- throughput ----------------------------------------------------------------------------------


def measure_degrees(
    model: str,
    overheads: Overheads,
    size: Size,
    lengths: tuple[int, int],
    *,
    is_removed: bool,
) -> dict[int, float]:
    """Degree -> tokens/s of one instance with everything sent at once; 0 where it does not fit."""
    flood = _load(lengths, concurrency=size.requests, requests=size.requests)
    node = overheads.served(get_node(HARDWARE, model, PRECISION, BACKEND), is_removed=is_removed)
    found = {}
    for degree in DEGREES:
        try:
            found[degree] = _measure(node, degree, flood, size).throughput_total_tokens_per_s
        except (PlanError, TunerError):  # heads do not divide, or no room is left for KV
            found[degree] = 0.0
    return found


def _measure(node: Node, degree: int, load: Load, size: Size) -> Measurement:
    settings = get_settings(
        f"tp={degree}", max_num_seqs=size.max_num_seqs, max_num_batched_tokens=8192
    )
    return node.simulate(settings, load.workload, seed=SEED).measurement


def _load(lengths: tuple[int, int], *, concurrency: int, requests: int) -> Load:
    return Load(
        concurrency=concurrency,
        input_tokens=lengths[0],
        output_tokens=lengths[1],
        requests=requests,
    )


def _against_degree(size: Size) -> Iterator[str]:
    yield "## Throughput against t, and t_e"
    yield ""
    yield f"{size.requests:,} requests at once, at most {size.max_num_seqs:,} running: input and"
    yield f"output tokens/s of one instance, and of the node with {DEVICES}/t instances. The"
    yield "paper's lengths are not known here: one load of long prompts, one of long answers."
    yield ""
    rows, degrees = [], {}
    for lengths in size.lengths:
        for overheads in (fitted_overheads(MODEL), published_overheads()):
            for is_removed in (False, True):
                found = measure_degrees(MODEL, overheads, size, lengths, is_removed=is_removed)
                name = f"{lengths[0]:,}/{lengths[1]:,}, {overheads.name}"
                t_e = find_optimal_degree(found, DEVICES)
                degrees[name, is_removed] = t_e
                cells = [f"{number(v)} ({number(v * DEVICES / t)})" for t, v in found.items()]
                state = "removed" if is_removed else "exposed"
                rows.append((f"{name}, {state}", *cells, str(t_e or "none")))
    yield from table(("overheads", *(f"t={t} (node)" for t in DEGREES), "t_e"), rows)
    yield from claim_table(_direction(degrees))


def _direction(degrees: Mapping[tuple[str, bool], int | None]) -> Iterator[Claim]:
    for name in dict.fromkeys(name for name, _ in degrees):
        low, high = degrees[name, False], degrees[name, True]
        yield Claim(
            what=f"t_e rises when overheads are removed ({name})",
            found=f"{low} exposed, {high} removed",
            holds=low is not None and high is not None and high > low,
        )


def _against_load(size: Size) -> Iterator[str]:
    yield "## What removing overheads gives, against load"
    yield ""
    long_in, long_out = size.lengths[-1]
    yield f"{MODEL} at TP={DEGREE}, closed loop, {long_in:,} in / {long_out:,} out."
    yield ""
    rows, gains = [], {}
    for overheads in (fitted_overheads(MODEL), published_overheads()):
        for concurrency in size.loads:
            before, after = (
                _at_load(overheads, concurrency, size, is_removed=is_removed)
                for is_removed in (False, True)
            )
            gain = after.throughput_total_tokens_per_s / before.throughput_total_tokens_per_s
            gains[overheads.name, concurrency] = gain
            cut = 1 - p50(after.e2e_ms.mean) / p50(before.e2e_ms.mean)
            rows.append(
                (
                    f"{overheads.name}, {concurrency} at a time",
                    number(before.throughput_total_tokens_per_s),
                    number(after.throughput_total_tokens_per_s),
                    f"{gain:.2f}x",
                    f"{cut:.0%}",
                )
            )
    yield from table(("", "tokens/s exposed", "removed", "gain", "latency cut"), rows)
    yield from claim_table(_gain_claims(gains, size))


def _at_load(
    overheads: Overheads, concurrency: int, size: Size, *, is_removed: bool
) -> Measurement:
    node = overheads.served(get_node(HARDWARE, MODEL, PRECISION, BACKEND), is_removed=is_removed)
    requests = min(size.requests, 4 * concurrency)
    load = _load(size.lengths[-1], concurrency=concurrency, requests=requests)
    return _measure(node, DEGREE, load, size)


def _gain_claims(gains: Mapping[tuple[str, int], float], size: Size) -> Iterator[Claim]:
    most = max(gains, key=lambda key: gains[key])
    yield Claim(
        what=f"up to {PUBLISHED_GAIN}x throughput",
        found=f"{gains[most]:.2f}x with {most[0]} at {most[1]} requests",
        holds=abs(gains[most] / PUBLISHED_GAIN - 1) <= 0.25,
    )
    for name in dict.fromkeys(name for name, _ in gains):
        first, last = gains[name, size.loads[0]], gains[name, size.loads[-1]]
        yield Claim(
            what=f"the gain grows with load ({name})",
            found=f"{first:.2f}x at {size.loads[0]}, {last:.2f}x at {size.loads[-1]}",
            holds=last > first,
        )


def _rule(size: Size) -> Iterator[str]:
    yield "## The rule of thumb: t_e = 4M/C once overheads are removed"
    yield ""
    overheads = published_overheads()
    rows = []
    for model in size.models:
        node = get_node(HARDWARE, model, PRECISION, BACKEND)
        weight_bytes = node.memory(ParallelPlan()).weight_bytes
        rule = rule_of_thumb_degree(weight_bytes, node.hardware.device.memory_bytes)
        found = [
            find_optimal_degree(
                measure_degrees(model, overheads, size, size.lengths[-1], is_removed=is_removed),
                DEVICES,
            )
            for is_removed in (False, True)
        ]
        rows.append(
            (
                model,
                f"{weight_bytes / 1e9:.0f} GB",
                str(rule),
                *(str(degree or "none") for degree in found),
                yes(found[1] == rule),
            )
        )
    yield from table(("model", "weights", "4M/C", "t_e exposed", "t_e removed", "rule holds"), rows)
    yield "Overheads: the paper's own at batch 128, in proportion to sequences."
    yield ""


def _notes() -> Iterator[str]:
    yield "## How this was set up"
    yield ""
    yield "* Forward times: operator curves of H100. Host times: the `vllm` profile, fitted to"
    yield "  served runs of other models, never to this paper."
    yield "* *The paper's own* takes its measured host and sampling times as given, in proportion"
    yield "  to the sequences of a step, and asks only what follows from them."
    yield "* t_e reads none where no degree is superlinear up to itself and best for the node."
    yield ""
