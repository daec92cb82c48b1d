"""Published runs of open-loop clients, and the same runs simulated.

vLLM 0.8.3 with Llama-3.3-70B in bf16 on eight A100 of 40 GB (repository surajssd/llm-k8s,
Apache-2.0): 200 ShareGPT prompts at Poisson rates, one row a request. The runs of a deployment
followed each other on one server with the same prompts and the prefix cache on, so all but the
first find prompts of the runs before. A pipeline of that version is several engines, each with its
own scheduler and cache; a prompt is found where it went to the same one before.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.spec.measurement import RequestTiming
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from tuner.described.node import Node
from tuner.spec.errors import TunerError
from tuner.workload.parse import parse_workload
from tuner.workload.workload import Workload

FOLDER = "vllm_0.8.3_llama70b_a100"
MODEL, BACKEND = "llama-3.3-70b", "vllm@0.8"
# Between two runs every request has ended.
PAUSE_S = 300.0
BURST_RPS = 1e4  # all at once


@dataclass(frozen=True, kw_only=True)
class Means:
    """Of one run, milliseconds."""

    ttft_ms: float
    tpot_ms: float


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """``runs`` are the published means by rate (requests/s), in the order they were made; those of
    rates without a file are the publisher's own summary."""

    name: str
    hardware: str
    plan: ParallelPlan
    runs: dict[float, Means]


DEPLOYMENTS = (
    Deployment(
        name="tp8_one_node",
        hardware="8xa100-40gb",
        plan=ParallelPlan(tp=8),
        runs={
            1: Means(ttft_ms=65.3, tpot_ms=24.56),
            4: Means(ttft_ms=50.3, tpot_ms=27.08),
            16: Means(ttft_ms=59.6, tpot_ms=31.58),
            BURST_RPS: Means(ttft_ms=360.4, tpot_ms=39.06),
        },
    ),
    Deployment(
        name="tp4_pp2_two_nodes_infiniband",
        hardware="2x4xa100-40gb",
        plan=ParallelPlan(tp=4, pp=2),
        runs={
            1: Means(ttft_ms=109.9, tpot_ms=43.89),
            4: Means(ttft_ms=115.7, tpot_ms=57.67),
            16: Means(ttft_ms=124.2, tpot_ms=68.38),
            BURST_RPS: Means(ttft_ms=870.4, tpot_ms=79.58),
        },
    ),
)
# That release's defaults on this device.
CAPS = Caps(max_num_seqs=256, max_num_batched_tokens=2048)


def read_lengths(data: Path, deployment: Deployment) -> list[tuple[int, int]]:
    """Prompt and answer tokens of its requests, in the order they were sent.

    Raises:
        TunerError: no such file.
    """
    path = data / FOLDER / f"{deployment.name}_rate16.csv"
    if not path.exists():
        raise TunerError(f"{path}: no such file; give the folder that holds {FOLDER}")
    with path.open() as file:
        return [
            (int(raw["input_tokens"]), int(raw["output_tokens"])) for raw in csv.DictReader(file)
        ]


def write_runs(path: Path, data: Path, deployment: Deployment, *, seed: int) -> None:
    """The deployment's runs one after the other as a trace of this project's own form."""
    lengths = read_lengths(data, deployment)
    rng = np.random.default_rng(seed)
    lines = ["arrival_s,input_tokens,output_tokens,prefix_id"]
    begin_s = 0.0
    for rate in deployment.runs:
        times = begin_s + np.cumsum(rng.exponential(1 / rate, len(lengths)))
        engines = rng.integers(0, deployment.plan.pp, len(lengths))
        lines += [
            f"{at:.6f},{inputs},{outputs},prompt{number}-engine{engine}"
            for number, (at, engine, (inputs, outputs)) in enumerate(
                zip(times, engines, lengths, strict=True)
            )
        ]
        begin_s = float(times[-1]) + PAUSE_S
    path.write_text("\n".join(lines) + "\n")


def read_runs(path: Path) -> Workload:
    """The trace as a command line reads it."""
    return parse_workload(f"csv:{path}", seed=0)


def simulate_runs(
    node: Node, deployment: Deployment, workload: Workload, *, keeps_prefixes: bool = True
) -> dict[float, Means]:
    """Means of each run by rate."""
    settings = Settings(plan=deployment.plan, caps=CAPS)
    timings = node.simulate(settings, workload, keeps_prefixes=keeps_prefixes).measurement.timings
    size = len(timings) // len(deployment.runs)
    return {
        rate: means_of(timings[number * size : (number + 1) * size])
        for number, rate in enumerate(deployment.runs)
    }


def means_of(timings: Sequence[RequestTiming]) -> Means:
    """As the load tool counts: TTFT of all, TPOT of answers of two tokens and more."""

    def tpot_s() -> Iterator[float]:
        for timing in timings:
            if (count := len(timing.token_s)) > 1:
                yield (timing.token_s[-1] - timing.token_s[0]) / (count - 1)

    ttft_s = [timing.token_s[0] - timing.sent_s for timing in timings]
    return Means(ttft_ms=1e3 * float(np.mean(ttft_s)), tpot_ms=1e3 * float(np.mean([*tpot_s()])))
