"""Question: how often does a rollout judge wrongly, and what does a regression cost until seen?

Llama-3.1-8B on one described A10G, simulated by the engine's own scheduler under steady, bursty and
drifting loads. *A/A*: candidate and control are the same settings, so every rollback is false;
whoever serves, requests fare alike, so that one long run is enough for many rollouts, each with its
own beginning and its own lot. *Injected*: requests of candidate slices miss with a stated chance.
*Simulated regressions*: settings that serve worse, switched in the running simulation by the same
decisions as the service's, with the queues that they leave behind.

    python -m benchmarks.rollouts --out FILE.md
"""

from __future__ import annotations

import argparse
import platform
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import numpy as np

from benchmarks.reporting import publish
from benchmarks.rollouts_played import (
    CONTROL,
    SLA,
    Ended,
    RolloutSteering,
    Served,
    naive_false_share,
    play_many,
    serve,
)
from engine.spec.settings import Caps
from policies.attainment import meets
from policies.rollout import FEW_REQUESTS, RolloutLimits, RolloutReason
from tuner.described.node import Node
from tuner.described.parse import describe_node
from tuner.workload.parse import parse_workload

LENGTHS = "input=256,output=16,input_cv=0.8,output_cv=0.8"
LOADS = {
    "steady": f"poisson:rate=5,{LENGTHS}",
    "bursty": f"burst:rate=3,peak=7,on_s=40,off_s=110,{LENGTHS}",
    "drifting": f"ramp:rate=2.5,to=6,{LENGTHS}",
    "sparse": "poisson:rate=0.9,input=1024,output=128,input_cv=0.8,output_cv=0.8",
}
CANDIDATES = {
    "starved": Caps(max_num_seqs=3, max_num_batched_tokens=1024),
    "small chunks": Caps(max_num_seqs=64, max_num_batched_tokens=64),
    "large chunks": Caps(max_num_seqs=64, max_num_batched_tokens=4096),
    "one sequence less": Caps(max_num_seqs=63, max_num_batched_tokens=1024),
}
ENVELOPE = Caps(max_num_seqs=64, max_num_batched_tokens=4096)
DROPS = (0.01, 0.05, 0.1, 0.2, 0.5)


def main() -> None:
    """Simulate, play, count, write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=1000, help="A/A rollouts of each load")
    parser.add_argument("--hours", type=float, default=2.5, help="of each recorded run")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each simulated regression")
    parser.add_argument("--out", type=Path, help="write the report here too")
    options = parser.parse_args()
    started_s = time.process_time()
    limits = RolloutLimits(few_requests=FEW_REQUESTS)
    node = describe_node(model="llama-3.1-8b", hardware="a10g", backend="gearshift")
    served = {
        name: serve(node, parse_workload(f"{spec},seconds={options.hours * 3600:g}", seed=3))
        for name, spec in LOADS.items()
    }
    lines = _head(limits, options)
    lines += _aa_lines(served, limits, options.rollouts)
    lines += _drop_lines(served, limits, max(1, options.rollouts // 20))
    lines += _regression_lines(node, limits, options.seeds)
    lines += [f"{time.process_time() - started_s:.0f} s of one core.", ""]
    report = "\n".join(lines)
    publish(report, options.out)


def _head(limits: RolloutLimits, options: argparse.Namespace) -> list[str]:
    return [
        "# Rollouts: false ones, and what a regression costs",
        "",
        f"{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, "
        f"{platform.machine()}. `python -m benchmarks.rollouts --rollouts {options.rollouts} "
        f"--hours {options.hours:g} --seeds {options.seeds}`.",
        "",
        f"Llama-3.1-8B on one A10G (described), `{CONTROL}`, SLA `{SLA}`. Slices of "
        f"{limits.slice_s:g} s, the first {limits.settle_s:g} s not counted, each counted "
        f"{limits.wait_s:g} s after its end; tolerance {limits.tolerance:g}, alpha "
        f"{limits.alpha:g}, at most {limits.max_exposed_s:g} s exposed, twice as long with fewer "
        f"than {limits.few_requests} requests.",
        "",
    ]


def _aa_lines(served: dict[str, Served], limits: RolloutLimits, rollouts: int) -> list[str]:
    lines = [
        f"## A/A: {rollouts} rollouts of each load",
        "",
        "The candidate is what runs already. `rolled back`: taken for worse, which is false; the "
        f"promise is at most {limits.alpha:.0%}. `open`: not decided at a cap, and "
        "therefore taken back.",
        "",
        "| load | attainment | requests a slice | lag-1 correlation of slices | rolled back | "
        "open | promoted | exposed s, median (p95) | z-test, looked at | independent requests |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    counted_s = limits.slice_s - limits.settle_s
    for name, run in served.items():
        ended = play_many(run, rollouts=rollouts, limits=limits)
        why = Counter(end.reason for end in ended)
        naive = naive_false_share(run, limits, rollouts=max(1, rollouts // 5))
        exposed = [end.exposed_s for end in ended]
        lines.append(
            f"| {name} | {run.met.mean():.3f} | {counted_s * len(run.met) / run.span_s:.0f} | "
            f"{_correlation(run, limits.slice_s):.2f} | "
            f"{why[RolloutReason.REGRESSION] / rollouts:.1%} | "
            f"{_undecided(ended):.1%} | "
            f"{why[RolloutReason.NOT_WORSE] / rollouts:.1%} | {_spread(exposed)} | "
            f"{naive['z-test, looked at']:.1%} | {naive['independent requests']:.1%} |"
        )
    return [
        *lines,
        "",
        "The two last columns: false rollbacks of what is often done instead, on the same slices, "
        "looked at after each pair, of a fifth as many rollouts. Requests of a burst fare alike, "
        "so tests that take them as independent see differences that are luck.",
        "",
    ]


def _drop_lines(served: dict[str, Served], limits: RolloutLimits, rollouts: int) -> list[str]:
    lines = [
        f"## Injected regressions: {rollouts} rollouts of each",
        "",
        "Each request of a candidate slice misses with the chance that is named, whatever it did.",
        "",
        "| load | misses injected | rolled back | open at the cap | promoted | exposed s until "
        "rolled back, median (p95) | requests, median (p95) | minutes until then, median (p95) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, run in served.items():
        for drop in DROPS:
            ended = play_many(run, rollouts=rollouts, limits=limits, drop=drop)
            why = Counter(end.reason for end in ended)
            seen = [end for end in ended if end.reason is RolloutReason.REGRESSION]
            lines.append(
                f"| {name} | {drop:g} | {why[RolloutReason.REGRESSION] / rollouts:.1%} | "
                f"{_undecided(ended):.1%} | "
                f"{why[RolloutReason.NOT_WORSE] / rollouts:.1%} | "
                f"{_spread([end.exposed_s for end in seen])} | "
                f"{_spread([end.exposed_requests for end in seen])} | "
                f"{_spread([end.took_s / 60 for end in seen])} |"
            )
    return [*lines, ""]


def _regression_lines(node: Node, limits: RolloutLimits, seeds: int) -> list[str]:
    lines = [
        f"## Settings that serve worse, in a running simulation: {seeds} seeds",
        "",
        "Switched to and fro under the steady load; queues that one leaves are the other's.",
        "",
        "| candidate | attainment alone (control) | ended | exposed s, median (p95) | requests, "
        "median (p95) |",
        "|---|---|---|---|---|",
    ]
    for name, caps in CANDIDATES.items():
        candidate = replace(CONTROL, caps=caps)
        ended: list[Ended] = []
        alone: list[float] = []
        control: list[float] = []
        for seed in range(seeds):
            workload = parse_workload(
                f"{LOADS['steady']},seconds={limits.max_duration_s + 120:g}", seed=100 + seed
            )
            steering = RolloutSteering(CONTROL, candidate, limits, f"ro_{name}_{seed}")
            node.simulate(CONTROL, workload, steering=steering, envelope=ENVELOPE)
            assert steering.ended is not None, "the run is longer than a rollout may last"
            ended.append(steering.ended)
            head = replace(
                workload, arrivals=tuple(a for a in workload.arrivals if a.arrival_s < 600)
            )
            for shares, settings in ((alone, candidate), (control, CONTROL)):
                timings = node.simulate(settings, head, envelope=ENVELOPE).measurement.timings
                shares.append(fmean([bool(meets(SLA, timing)) for timing in timings]))
        why = Counter(end.reason.value for end in ended)
        told = ", ".join(f"{reason} {count}" for reason, count in why.most_common())
        lines.append(
            f"| {name}: {caps.max_num_seqs} sequences, {caps.max_num_batched_tokens} tokens | "
            f"{np.mean(alone):.3f} ({np.mean(control):.3f}) | {told} | "
            f"{_spread([end.exposed_s for end in ended])} | "
            f"{_spread([end.exposed_requests for end in ended])} |"
        )
    return [*lines, ""]


def _undecided(ended: Sequence[Ended]) -> float:
    return float(np.mean([end.reason.is_undecided for end in ended]))


def _correlation(run: Served, slice_s: float) -> float:
    """Of the attainment of slices with that of the slice before."""
    edges = np.arange(0, run.span_s, slice_s)
    counts = [run.count(a, b) for a, b in pairwise(edges)]
    shares = np.array([met / judged if judged else 1.0 for judged, met in counts])
    return float(np.corrcoef(shares[:-1], shares[1:])[0, 1]) if shares.std() else 0.0


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{np.median(values):.0f} ({np.percentile(values, 95):.0f})"


if __name__ == "__main__":
    main()
