"""Question: how well does simulation foresee published runs of open-loop clients, and why not?

Poisson arrivals and ShareGPT prompts on vLLM 0.8.3, in one node (tp=8) and over two (tp=4, pp=2).
Each deployment's runs are simulated one after the other on one server, as they were made, with what
was found added piece by piece; then what stages add is fitted without each load in turn.

    python -m benchmarks.served_open --data ../shared/served --out FILE.md
"""

from __future__ import annotations

import argparse
import datetime
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks.reporting import publish
from tuner.calibration.pipeline import PIPELINE, SEEDS, fit_pipeline, traces
from tuner.calibration.served_open import (
    BACKEND,
    BURST_RPS,
    CAPS,
    DEPLOYMENTS,
    MODEL,
    Deployment,
    Means,
    simulate_runs,
)
from tuner.described.node import Node
from tuner.described.parse import describe_node
from tuner.workload.workload import Workload

TWO_NODES = "+ two nodes"
NO_STAGES = "host.pipeline_step_s=0,host.pipeline_seq_s=0"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What is known from here on: ``backend`` as a command line has it."""

    name: str
    backend: str
    has_curves: bool = True
    keeps_prefixes: bool = True
    is_over_nodes: bool = True


PIECES = (
    Piece(
        name="before",
        backend=f"{BACKEND},schedules_ahead=on,{NO_STAGES}",
        has_curves=False,
        keeps_prefixes=False,
        is_over_nodes=False,
    ),
    Piece(
        name=TWO_NODES,
        backend=f"{BACKEND},schedules_ahead=on,{NO_STAGES}",
        has_curves=False,
        keeps_prefixes=False,
    ),
    Piece(
        name="+ the A100's curves at this memory's bandwidth",
        backend=f"{BACKEND},schedules_ahead=on,{NO_STAGES}",
        keeps_prefixes=False,
    ),
    Piece(
        name="+ prompts cached by the runs before",
        backend=f"{BACKEND},schedules_ahead=on,{NO_STAGES}",
    ),
    Piece(name="+ a request joins the next step", backend=f"{BACKEND},{NO_STAGES}"),
    Piece(name="+ what stages add (after)", backend=BACKEND),
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of served runs")
    parser.add_argument("--out", type=Path, help="write the report here too")
    options = parser.parse_args(arguments)
    lines = [*_introduction()]
    for deployment in DEPLOYMENTS:
        lines += _deployment(deployment, traces(deployment, options.data))
    lines += [*_fits(options.data), *_limits()]
    report = "\n".join(lines)
    publish(report + "\n", options.out)
    return 0


def _introduction() -> Iterator[str]:
    yield "# Open-loop runs of vLLM over one node and over two, simulated"
    yield ""
    yield f"* Date: {datetime.datetime.now(tz=datetime.UTC).date()}; seeds {_listed(SEEDS)}"
    yield f"* Versions: Python {platform.python_version()}, numpy {version('numpy')}"
    yield "* Command: `python -m benchmarks.served_open --data ../shared/served --out FILE.md`"
    yield "* Data: Llama-3.3-70B in bf16 by vLLM 0.8.3 on eight A100 of 40 GB (surajssd/llm-k8s,"
    yield "  Apache-2.0): 200 ShareGPT requests at each rate. Nothing was timed here. Lengths are"
    yield "  the published ones, arrivals drawn anew (the generator's seed is not known), averaged."
    yield "* Means in milliseconds, and in brackets (simulated - published) / published."
    yield f"* Simulated as `gearshift simulate --model {MODEL} --dtype bf16 --hardware HARDWARE"
    yield f"  --backend {BACKEND} --plan PLAN --max-num-seqs {CAPS.max_num_seqs}"
    yield f"  --max-num-batched-tokens {CAPS.max_num_batched_tokens} --workload csv:RUNS`, hardware"
    yield "  and plan as in the headings; RUNS holds all runs of a deployment, 300 s apart, each"
    yield "  prompt with the id of the engine's cache that it went to."
    yield ""


def _deployment(deployment: Deployment, workloads: Sequence[Workload]) -> Iterator[str]:
    yield f"## {deployment.name}: `{deployment.plan}` on `{deployment.hardware}`"
    yield ""
    rates = list(deployment.runs)
    heads = " | ".join(f"{metric}, {_rate(rate)}" for rate in rates for metric in ("TTFT", "TPOT"))
    yield f"| | {heads} |"
    yield "|---|" + "---:|" * (2 * len(rates))
    shown = (f"{m.ttft_ms:.0f} | {m.tpot_ms:.1f}" for m in deployment.runs.values())
    yield f"| published | {' | '.join(shown)} |"
    for piece in PIECES:
        if piece.name != TWO_NODES or deployment is PIPELINE:
            yield _row(piece, deployment, workloads)
    yield ""


def _row(piece: Piece, deployment: Deployment, workloads: Sequence[Workload]) -> str:
    node = _node(piece, deployment)
    runs = [
        simulate_runs(node, deployment, workload, keeps_prefixes=piece.keeps_prefixes)
        for workload in workloads
    ]
    cells = []
    for rate, published in deployment.runs.items():
        means = _mean([run[rate] for run in runs])
        for metric in ("ttft_ms", "tpot_ms"):
            told, true = getattr(means, metric), getattr(published, metric)
            cells.append(f"{told:.{0 if metric == 'ttft_ms' else 1}f} ({told / true - 1:+.0%})")
    return f"| {piece.name} | {' | '.join(cells)} |"


def _node(piece: Piece, deployment: Deployment) -> Node:
    hardware = deployment.hardware if piece.is_over_nodes else "8xa100-40gb"
    node = describe_node(model=MODEL, hardware=hardware, dtype="bf16", backend=piece.backend)
    if piece.has_curves:
        return node
    device = replace(node.hardware.device, curves=None, curves_of=None)
    return replace(node, hardware=replace(node.hardware, device=device))


def _mean(means: Sequence[Means]) -> Means:
    return Means(
        ttft_ms=float(np.mean([m.ttft_ms for m in means])),
        tpot_ms=float(np.mean([m.tpot_ms for m in means])),
    )


def _fits(data: Path) -> Iterator[str]:
    yield "## What stages add, fitted without each load in turn"
    yield ""
    yield "Two figures: a step's messages (from Ray's 6.24 ± 1.5 ms a step in a 2023 engine), and a"
    yield "sequence's work in the process that is front end, schedulers and first stage at once"
    yield "(from 0.2 ± 0.2 ms). Errors of mean TPOT; those of the load held out in bold."
    yield ""
    rates = list(PIPELINE.runs)
    yield "| fitted | ms a step | ms a sequence | " + " | ".join(map(_rate, rates)) + " |"
    yield "|---|---:|---:|" + "---:|" * len(rates)
    for fit in fit_pipeline(data):
        name = "on all" if fit.held_out is None else f"without {_rate(fit.held_out)}"
        cells = (
            f"**{error:+.1%}**" if rate == fit.held_out else f"{error:+.1%}"
            for rate, error in fit.errors.items()
        )
        yield f"| {name} | {1e3 * fit.step_s:.2f} | {1e3 * fit.seq_s:.3f} | {' | '.join(cells)} |"
    yield ""


def _limits() -> Iterator[str]:
    yield "## What was found, and what this does not say"
    yield ""
    yield "* The same deployment without InfiniBand, and with it tuned, was published too: mean"
    yield "  TPOT at Poisson rates differs by less than 4 %. So the link between the nodes is not"
    yield "  what slows decoding."
    yield "* With several stages this version serves by its older engine: requests are divided"
    yield "  among as many engines as stages, each step goes to the other stages as a message of"
    yield "  Ray, the HTTP front end shares their process, and outputs are not handled beside the"
    yield "  next step (its configuration turns that off with stages). Work of one step delays the"
    yield "  other's."
    yield "* Later versions have another engine with its front end in a process of its own; nothing"
    yield "  was measured of their stages, and `vllm@0.9` and later add nothing."
    yield "* At tp=8 nothing was fitted on these runs: curves are the A100's of 80 GB, host times"
    yield "  those of H100 runs."
    yield "* The burst waits for prompts that the runs before left in the caches only in part: TTFT"
    yield "  there is off by what the order of prefills and the engines' division do."
    yield "* Arrivals are Poisson. No published runs of traces or of conversations with shared"
    yield "  beginnings are at hand; what shares here are whole prompts of earlier runs."


def _rate(rate: float) -> str:
    return "all at once" if rate == BURST_RPS else f"{rate:g}/s"


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


if __name__ == "__main__":
    main()
