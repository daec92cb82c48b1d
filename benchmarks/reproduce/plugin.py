"""What the published times say of how the plug-in launches its steps: a sweep, not a fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from benchmarks.reproduce.nodes import Load, decode_step, get_settings, p50, run
from benchmarks.reproduce.tables import table
from engine.spec.plan import ParallelPlan
from tuner.described.node import Node
from tuner.hardware import Launch, paced_timer


@dataclass(frozen=True, kw_only=True)
class Launches:
    """How both modes start their kernels, and whether every rank multiplies the whole head."""

    base: Launch
    shift: Launch
    has_whole_head: bool

    def __str__(self) -> str:
        head = "whole" if self.has_whole_head else "cut"
        return f"base {self.base}, shift {self.shift}, head {head}"

    def applied(self, node: Node) -> Node:
        """``node`` with these launches."""
        backend = replace(node.backend, launch=self.base, shift_launch=self.shift)
        return replace(node, backend=backend)


def launch_sections(
    node: Node, load: Load, published: Mapping[str, Mapping[str, float]]
) -> Iterator[str]:
    """The report's lines: TTFT and TPOT of SP and Shift under every way to launch both modes."""
    yield "## How the plug-in launches its steps"
    yield ""
    yield "Which collectives the plug-in issues from Python and which replay from graphs is not"
    yield "published. One request at a time, ms (error), with each mode launched either way; the"
    yield f"profile says base `{node.backend.launch}`, shift `{node.backend.shift_launch}`."
    yield "*Head whole*: as in the plug-in's public code, where every rank of an SP group"
    yield "multiplies the whole head in both modes; the profile cuts it over the ranks."
    yield ""
    cases = [
        Launches(base=base, shift=shift, has_whole_head=has_whole_head)
        for has_whole_head in (False, True)
        for base in Launch
        for shift in Launch
    ]
    rows = [(str(case), *_cells(node, load, published, case)) for case in cases]
    yield from table(("", "SP TTFT", "SP TPOT", "Shift TTFT", "Shift TPOT"), rows)
    gap_ms = published["TPOT ms"]["SP=8"] - published["TPOT ms"]["DP=8"]
    each_us = 1e3 * gap_ms / (2 * node.model.num_layers)
    yield f"SP's published TPOT is {gap_ms:.1f} ms above DP's, though both read the same weights:"
    yield f"{each_us:.0f} us for each of its all-to-alls, which alone take 7 to 12 us in published"
    yield "measurements. What is left are copies before and after them, the time until Python has"
    yield "issued them, and ranks that wait for each other."
    yield "Issuing an all-reduce takes Python 21 us at any size to 64 KB, 5 us when replayed: in a"
    yield "step that is hidden as long as the layers take longer, and counted so. All-to-alls by"
    yield "`torch.distributed` run on a stream of their own, which takes turns with the layers'."
    yield ""


def _cells(
    node: Node, load: Load, published: Mapping[str, Mapping[str, float]], case: Launches
) -> Iterator[str]:
    launched = case.applied(node)
    added_ms = 1e3 * _head_added_s(node) if case.has_whole_head else 0.0
    for plan, column in (("sp=8", "SP=8"), ("sp=8,shift", "Shift")):
        settings = get_settings(
            plan, max_num_seqs=8, max_num_batched_tokens=131_072, threshold_tokens=512
        )
        measured = run(launched, settings, load.workload)
        for row, found in (("TTFT ms", measured.ttft_ms), ("TPOT ms", measured.tpot_ms)):
            value = p50(found.p50) + added_ms
            yield f"{value:.1f} ({value / published[row][column] - 1:+.0%})"


def _head_added_s(node: Node) -> float:
    """What the whole head takes longer than the head cut over eight ranks, for one row."""
    shape = decode_step(1, 1)
    whole, shared = (
        paced_timer(node.hardware, node.model, plan, node.precision).breakdown(shape, 0).head_s
        for plan in (ParallelPlan(), ParallelPlan(sp=8))
    )
    return whole - shared
