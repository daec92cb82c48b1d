"""Checks of the operator report against measurements that no curve was fitted on: prefill chunks
over a prefix, and all-reduces across nodes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from engine.spec.plan import ParallelPlan
from tuner.calibration.fit import fit_kind
from tuner.calibration.links import CLEAN_BYTES
from tuner.calibration.readers import read_chunked_prefill, read_links
from tuner.calibration.systems import SYSTEMS, measured_prefill, peaks
from tuner.hardware.chunks import chunk_seconds
from tuner.hardware.collectives import CollectiveTimes
from tuner.hardware.device import load_data_sheet, load_device
from tuner.hardware.physics import FloatArray
from tuner.work.counts import Collective, CollectiveKind

PREFIXES = ((1, 512), (512, 1536), (1536, 4096))

# -- prefill over a prefix -----------------------------------------------------------------------


def prefix_lines(data: Path) -> list[str]:
    """What a cached prefix adds to a chunk, on the one device where that was measured."""
    system = next(s for s in SYSTEMS if s.device == "a100")
    device = load_data_sheet(system.device)
    measured = measured_prefill(data, system, device)
    curve = fit_kind("prefill")(measured.work, measured.seconds)
    columns = read_chunked_prefill(data, "a100_llama-2-70b_tp2")
    seqs, queries, prefix, heads, kv_heads, ranks = columns.values.T

    def predicted(cached: FloatArray) -> FloatArray:
        return chunk_seconds(
            curve,
            peaks(device, "bfloat16"),
            kernel_s=device.kernel_launch_s,
            seqs=seqs,
            queries=queries,
            prefix=cached,
            heads=float(heads[0] / ranks[0]),
            kv_heads=float(kv_heads[0] / ranks[0]),
        )

    without = _without_prefix(queries, prefix, columns.seconds)
    added = columns.seconds - without
    error = predicted(prefix) - predicted(np.zeros_like(prefix)) - added
    lines = [
        "## Prefill over a prefix (A100, Vidur's profile, never fitted)",
        "",
        "Vidur's kernel does not skip masked keys inside a chunk, vLLM's does: whole times differ",
        "by up to 2.6 times, so what a prefix *adds* is compared, relative to the whole time.",
        "No number is fitted to these rows; the rule of splits, its tile of 128 queries and the",
        "second kernel (`tuner/hardware/chunks.py`) were chosen among a few with them in view.",
        "",
        "| prefix | chunk | rows | median error | p90 | bias |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for low, high in PREFIXES:
        for smallest, largest in ((64, 256), (256, 1024), (1024, 4096)):
            chosen = (prefix >= low) & (prefix < high) & (queries >= smallest) & (queries < largest)
            chosen &= np.isfinite(without)
            if not chosen.any():
                continue
            relative = error[chosen] / columns.seconds[chosen]
            median, p90 = np.quantile(np.abs(relative), (0.5, 0.9))
            lines.append(
                f"| {low}-{high} | {smallest}-{largest} | {chosen.sum()} | {median:.1%} | "
                f"{p90:.1%} | {np.median(relative):+.1%} |"
            )
    return [*lines, ""]


def _without_prefix(queries: FloatArray, prefix: FloatArray, seconds: FloatArray) -> FloatArray:
    """The time of each row's chunk without a prefix; NaN where that was not measured."""
    known = {q: s for q, p, s in zip(queries, prefix, seconds, strict=True) if p == 0}
    return np.array([known.get(q, np.nan) for q in queries])


# -- across nodes --------------------------------------------------------------------------------


def node_lines(data: Path) -> list[str]:
    """The hierarchical law against all-reduces over two machines, from the sends between them."""
    lines = [
        "## All-reduce across nodes (A100, Vidur's profile, never fitted)",
        "",
        "The law: NCCL's all-reduce inside a node as fitted, then a ring of the nodes in which",
        "each device sends its part, for as long as sends between those machines take; devices may",
        "share the ways out of a node. That cluster sends 7.8 GB/s from node to node, a third of",
        "an HDR adapter. No single number of ways out fits: 2 do for 4 devices a node, 1 for 8.",
        "",
        "| devices x nodes | ways out of a node | rows | median error | bias |",
        "|---|---:|---:|---:|---:|",
    ]
    columns = read_links(data, "a100_dgx_all_reduce")
    a100 = load_device("a100")
    measured = replace(a100.between_nodes, measured_on="a100")
    for per_node in (1, 2, 4, 8):
        is_mine = columns.column("devices_per_node") == per_node
        is_mine &= columns.column("num_workers") == 2 * per_node
        mine = columns.where(is_mine & (columns.column("size") >= CLEAN_BYTES))
        for adapters in (8, 2, 1):
            device = replace(
                a100,
                between_nodes=measured,
                devices_per_node=per_node,
                adapters_per_node=adapters,
            )
            times = CollectiveTimes(device, a100.curves, ParallelPlan(tp=2 * per_node), "nccl")
            logs = np.log([_all_reduce_s(times, 2 * per_node, b) for b in mine.column("size")])
            logs -= np.log(mine.seconds)
            error = np.median(np.abs(np.expm1(logs)))
            lines.append(
                f"| {per_node} x 2 | {adapters} | {len(mine)} | {error:.0%} | "
                f"{np.expm1(np.median(logs)):+.0%} |"
            )
    return [*lines, ""]


def _all_reduce_s(times: CollectiveTimes, ranks: int, num_bytes: float) -> float:
    kind = CollectiveKind.ALL_REDUCE
    return times.seconds(Collective(kind=kind, ranks=ranks, num_bytes=num_bytes))
