"""What the published times say of how the plug-in launches its steps: a sweep, not a fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from benchmarks.reproduce.nodes import Load, decode_step, get_settings, p50, run
from benchmarks.reproduce.tables import table
from engine.plan import ParallelPlan
from tuner.hardware import Launch, paced_timer
from tuner.node import Node


def launch_sections(
    node: Node, load: Load, published: Mapping[str, Mapping[str, float]]
) -> Iterator[str]:
    """The report's lines: TTFT and TPOT of SP and Shift under every way to launch both modes."""
    yield "## How the plug-in launches its steps"
    yield ""
    yield "Which collectives the plug-in issues from Python and which replay from graphs is not"
    yield "published. One request at a time, ms (error), with each mode launched either way; the"
    yield f"profile says base `{node.backend.launch}`, shift `{node.backend.shift_launch}`."
    yield ""
    rows = [
        (f"base {base}, shift {shift}", *_cells(node, load, published, base, shift))
        for base in Launch
        for shift in Launch
    ]
    yield from table(("", "SP TTFT", "SP TPOT", "Shift TTFT", "Shift TPOT"), rows)
    yield "Not in these times: in the plug-in's public code every rank of an SP group multiplies"
    yield f"the whole head, in both modes: {1e3 * _head_added_s(node):.2f} ms a step more than with"
    yield "the head cut over the ranks."
    yield ""


def _cells(
    node: Node,
    load: Load,
    published: Mapping[str, Mapping[str, float]],
    base: Launch,
    shift: Launch,
) -> Iterator[str]:
    launched = replace(
        node, backend=replace(node.backend, launch=base, shift_launch=shift), _timers={}
    )
    for plan, column in (("sp=8", "SP=8"), ("sp=8,shift", "Shift")):
        settings = get_settings(
            plan, max_num_seqs=8, max_num_batched_tokens=131_072, threshold_tokens=512
        )
        measured = run(launched, settings, load.workload)
        for row, found in (("TTFT ms", measured.ttft_ms), ("TPOT ms", measured.tpot_ms)):
            value = p50(found.p50)
            yield f"{value:.1f} ({value / published[row][column] - 1:+.0%})"


def _head_added_s(node: Node) -> float:
    shape = decode_step(1, 1)
    whole, shared = (
        paced_timer(node.hardware, node.model, plan, node.precision).breakdown(shape, 0).head_s
        for plan in (ParallelPlan(), ParallelPlan(sp=8))
    )
    return whole - shared
