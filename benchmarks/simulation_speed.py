"""Question: how fast is simulation, how much memory does it take, and how soon is it ready?

Every case runs in a process of its own on one core: ``ready_s`` is the wall time from the
process's start to the first event (beside it the processor time, which other programs hardly
change), the rate is simulated requests per second of CPU, the best of
several runs (other programs only ever make it slower). Load is given as a share of what the plan
bears, found by simulating everything at once.

For comparison stands Microsoft's Vidur on a machine of this kind, with warm caches and predictors
that took half an hour of CPU to train: 1,592 requests/s of the Azure code trace (overloaded),
377/s of 2,000 requests of 1,155 in / 211 out at 70 % load, 50/s of them with four stages.

    python -m benchmarks.simulation_speed --traces ../shared/traces --out FILE.md
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

from benchmarks.quiet import OtherPrograms
from benchmarks.reporting import publish

AZURE = "azure2023/AzureLLMInferenceTrace_code.csv"
LENGTHS = "input=1155,output=211"
VARIED = f"{LENGTHS},input_cv=1,output_cv=1"
HEAVY_MODULES = ("torch", "sklearn", "pandas", "scipy", "optuna")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One simulation; ``load`` is a share of capacity, None for a trace as it is."""

    name: str
    plan: str
    workload: str
    load: float | None = None
    vidur_rps: float | None = None
    model: str = "llama-3.1-8b"
    hardware: str = "8xa100"
    precision: str = "bf16"


CASES = (
    Case(
        name="Azure code trace", plan="tp=2", workload=f"azure:{{traces}}/{AZURE}", vidur_rps=1592
    ),
    Case(name="1,155/211 at 70 %", plan="tp=2", workload=LENGTHS, load=0.7, vidur_rps=377),
    Case(name="varied lengths at 70 %", plan="tp=2", workload=VARIED, load=0.7, vidur_rps=377),
    Case(name="1,155/211 at 70 %", plan="pp=4", workload=LENGTHS, load=0.7, vidur_rps=50),
    Case(name="varied lengths at 70 %", plan="pp=4", workload=VARIED, load=0.7, vidur_rps=50),
    Case(
        name="70B fp8, Azure code trace",
        plan="sp=8,shift=512",
        workload=f"azure:{{traces}}/{AZURE}",
        model="llama-3.1-70b",
        hardware="8xh200",
        precision="fp8",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one process found."""

    requests: int
    steps: int
    scheduled_steps: int
    rate_rps: float
    ready_s: float
    ready_cpu_s: float
    best_cpu_s: float
    max_rss_mb: float
    heavy: list[str]


def main() -> None:
    """Run every case in its process and write the report."""
    options = _options()
    if options.case is not None:
        print(json.dumps(asdict(_run(CASES[options.case], options))))
        return
    with OtherPrograms() as others:
        rows = [_in_a_process(number, options) for number in range(len(CASES))]
    text = report(rows, others.share, options)
    publish(text, options.out)


def _run(case: Case, options: argparse.Namespace) -> Row:
    """Simulate one case ``--repeats`` times in this process."""
    from engine.spec.plan import parse_plan
    from engine.spec.settings import Settings
    from tuner.backends import load_backend
    from tuner.described.node import Node
    from tuner.hardware import Precision, parse_hardware
    from tuner.work.models import load_model
    from tuner.workload.parse import parse_workload

    node = Node(
        hardware=parse_hardware(case.hardware),
        model=load_model(case.model),
        precision=Precision.parse(case.precision),
        backend=load_backend("gearshift"),
    )
    spec = parse_plan(case.plan)
    settings = Settings(
        plan=spec.plan,
        threshold_tokens=spec.threshold_tokens or 256,
        caps=replace(node.backend.default_caps, max_num_seqs=128, max_num_batched_tokens=4096),
    )
    node.timer(spec.plan)
    ready_s, ready_cpu_s = time.time() - options.started, time.process_time()
    if case.load is None:
        text = case.workload.format(traces=options.traces)
    else:
        at_once = parse_workload(f"poisson:rate=1e6,{case.workload},requests=2000", seed=0)
        most_rps = 2000 / node.simulate(settings, at_once).measurement.window_s
        text = f"poisson:rate={case.load * most_rps:.4g},{case.workload},requests=2000"
    workload = parse_workload(text, seed=1)
    best_s = float("inf")
    for _ in range(options.repeats):
        before_s = time.process_time()
        result = node.simulate(settings, workload)
        best_s = min(best_s, time.process_time() - before_s)
    return Row(
        requests=len(workload),
        steps=result.counts.num_steps,
        scheduled_steps=result.counts.scheduled_steps,
        rate_rps=workload.rate_rps or 0.0,
        ready_s=ready_s,
        ready_cpu_s=ready_cpu_s,
        best_cpu_s=best_s,
        max_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        heavy=[name for name in HEAVY_MODULES if name in sys.modules],
    )


def _in_a_process(number: int, options: argparse.Namespace) -> Row:
    command = [sys.executable, "-m", "benchmarks.simulation_speed", "--case", str(number)]
    command += ["--traces", str(options.traces), "--repeats", str(options.repeats)]
    command += ["--started", str(time.time())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    print(CASES[number].name, CASES[number].plan, done.stdout.strip(), flush=True)
    return Row(**json.loads(done.stdout))


def report(rows: list[Row], others: float, options: argparse.Namespace) -> str:
    """The dated report."""
    lines = [
        f"# Speed of simulation, {time.strftime('%Y-%m-%d')}",
        "",
        (__doc__ or "").partition("    python")[0].strip(),
        "",
        "| case | plan | requests | steps | of them scheduled one by one | requests/s of CPU | "
        "Vidur | times | steps/s | ready after | of processor | memory at most | heavy modules |",
        "|" + " --- |" * 13,
    ]
    for case, row in zip(CASES, rows, strict=True):
        rate = row.requests / row.best_cpu_s
        times = f"{rate / case.vidur_rps:.1f}" if case.vidur_rps else "-"
        lines.append(
            f"| {case.name} ({case.model}, {case.hardware}) | `{case.plan}` | {row.requests:,} | "
            f"{row.steps:,} | {row.scheduled_steps:,} | {rate:,.0f} | {case.vidur_rps or '-'} | "
            f"{times} | {row.steps / row.best_cpu_s:,.0f} | {row.ready_s:.2f} s | "
            f"{row.ready_cpu_s:.2f} s | "
            f"{row.max_rss_mb:.0f} MB | {', '.join(row.heavy) or 'none'} |"
        )
    lines += [
        "",
        f"Other programs took {others:.0%} of the cores meanwhile. Vidur's figures are of its own "
        "models of the same kind of case (70 % of its own capacity), not of these devices. Its "
        "memory was 1 GB.",
        "",
        "## How to repeat",
        "",
        f"`python -m benchmarks.simulation_speed --traces {options.traces} "
        f"--repeats {options.repeats} --out FILE.md`",
        "",
        f"Python {platform.python_version()}, numpy {version('numpy')}; {os.cpu_count()} cores, "
        "one used.",
        "",
    ]
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, default=Path("../shared/traces"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", type=int, help="run one case here (used by the benchmark)")
    parser.add_argument("--started", type=float, default=time.time(), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
