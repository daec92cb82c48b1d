"""Question: how far is the surrogate off, and do its intervals hold?

    python -m benchmarks.surrogate_errors --out FILE.md

For each problem it prepares a tuning job as ``gearshift tune`` does, with the plans of every third
kind held out of its examples, and then simulates the whole workload of drawn settings of the plans
it was not shown: what it said of them beside what came out, and beside what its physical part says
alone (the same factor, no trees). A false "feasible" is a setting whose
predicted values meet the SLA and whose simulated ones do not.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np

from benchmarks.reporting import publish
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from policies.points import OperatingPoint
from policies.verdict import meets_in_run
from tuner.search.context import TuningContext
from tuner.search.design import ruled_settings
from tuner.search.prepare import prepare
from tuner.search.ranking import described_load, trained_surrogate
from tuner.search.spec import TuningSpec
from tuner.search.surrogate import Surrogate
from tuner.spec.errors import TunerError
from tuner.spec.space import Space
from tuner.workload.workload import FloatArray

EVERY = 3


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A tuning job in the words of the command line."""

    model: str
    hardware: str
    workload: str
    sla: str

    def __str__(self) -> str:
        return f"{self.model}, {self.hardware}, `{self.workload}`, `{self.sla}`"


PROBLEMS = (
    Problem(
        model="llama-3.1-8b",
        hardware="4xh100",
        workload="poisson:rate=40,input=1024,output=128,input_cv=0.5,requests=600",
        sla="p95_ttft_ms<=500,p95_tpot_ms<=25",
    ),
    Problem(
        model="llama-3.1-70b",
        hardware="8xh200",
        workload="gamma:rate=12,cv=2,input=2000,output=200,output_cv=0.5,requests=600",
        sla="p95_ttft_ms<=2000,p95_tpot_ms<=50",
    ),
    Problem(
        model="qwen3-32b",
        hardware="4xh100",
        workload="burst:rate=4,peak=20,on_s=5,off_s=15,input=1500,output=150,requests=500",
        sla="p95_ttft_ms<=1500,p95_tpot_ms<=40",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was predicted and what came out, of one setting of a plan that was held out.
    ``physical`` is what the surrogate predicts without its trees."""

    predicted: OperatingPoint
    physical: OperatingPoint
    simulated: OperatingPoint
    said_feasible: bool
    is_feasible: bool


def outcomes(problem: Problem, count: int, seed: int) -> tuple[list[Outcome], list[str], float]:
    """Of ``count`` drawn settings; with the surrogate's own report and seconds of processor."""
    spec = TuningSpec(
        model_dir=problem.model,
        num_devices=int(problem.hardware.partition("x")[0]),
        hardware=problem.hardware,
        workload=problem.workload,
        sla=problem.sla,
        is_live=False,
        seed=seed,
    )
    found: list[Outcome] = []
    report: list[str] = []
    begin_s = time.process_time()
    with prepare(spec) as context:
        plans = context.space.plans
        prepared_s = time.process_time() - begin_s
        for first in range(EVERY):
            held = plans[first::EVERY]
            part, report = _held_out(context, set(held), count // EVERY, seed + first)
            found += part
    return found, report, prepared_s


def _held_out(
    context: TuningContext, held: set[ParallelPlan], count: int, seed: int
) -> tuple[list[Outcome], list[str]]:
    every = list(context.examples)
    context.examples[:] = [e for e in every if e.point.settings.plan not in held]
    surrogate = trained_surrogate(context, [])
    context.examples[:] = every
    if surrogate is None:
        return [], []
    load = described_load(context)
    physics = without_trees(surrogate)
    found = []
    for settings in draw_settings(context, sorted(held, key=str), count, seed):
        timer = context.simulator.timer(settings.plan)
        predicted = surrogate.predict(settings, load, timer)
        try:
            simulated = context.simulator.quick_point(settings, context.trial_workload)
        except TunerError:
            continue
        known = [c for c in context.sla.per_run if c.key in predicted.metrics]
        found.append(
            Outcome(
                predicted=predicted,
                physical=physics.predict(settings, load, timer),
                simulated=simulated,
                said_feasible=all(predicted.is_met(c) for c in known),
                is_feasible=meets_in_run(simulated, context.sla),
            )
        )
    return found, surrogate.error_report()


def without_trees(surrogate: Surrogate) -> Surrogate:
    """Its physical part alone."""
    models = {key: replace(model, trees=None) for key, model in surrogate.models.items()}
    return replace(surrogate, models=models)


def draw_settings(
    context: TuningContext, plans: list[ParallelPlan], count: int, seed: int
) -> Iterator[Settings]:
    """Caps from the space's grids, thresholds as step times advise."""
    space: Space = context.space
    rng = np.random.default_rng([seed, 0x5E77])
    for _ in range(count):
        plan = plans[int(rng.integers(len(plans)))]
        caps = Caps(
            max_num_seqs=int(rng.choice(space.num_seqs)),
            max_num_batched_tokens=int(rng.choice(space.batched_tokens)),
        )
        timer = context.simulator.timer(plan)
        options = ruled_settings(plan, timer, caps, has_rungs=space.has_rungs)
        yield options[int(rng.integers(len(options)))]


def metric_lines(found: list[Outcome]) -> Iterator[str]:
    """A row a metric: its errors, those of physics alone, its coverage."""
    yield (
        "| metric | settings | median error | p90 | bias | physics alone: median | p90 | "
        "inside the 90 % interval |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    logs: dict[str, list[tuple[float, float, bool]]] = defaultdict(list)
    for each in found:
        for key, guess in each.predicted.metrics.items():
            actual = each.simulated.metrics.get(key)
            if actual is not None and 0 < actual.value < math.inf:
                inside = guess.low <= actual.value <= guess.high
                alone = each.physical.metrics[key].value
                error, of_alone = (math.log(v / actual.value) for v in (guess.value, alone))
                logs[key].append((error, of_alone, inside))
    for key, rows in logs.items():
        errors, alone, inside = np.array(rows).T
        cells = [f"{level:.0%}" for level in _sizes(errors)]
        cells.append(f"{np.expm1(np.median(errors)):+.0%}")
        cells += [f"{level:.0%}" for level in (*_sizes(alone), inside.mean())]
        yield f"| {key} | {len(rows)} | {' | '.join(cells)} |"


def _sizes(logs: FloatArray) -> tuple[float, float]:
    """Median and 90th percentile of relative errors."""
    sizes = np.expm1(np.abs(logs))
    return float(np.median(sizes)), float(np.quantile(sizes, 0.9))


def feasible_line(found: list[Outcome]) -> str:
    """How often it said feasible, and how often that was wrong."""
    said = [each for each in found if each.said_feasible]
    wrong = sum(not each.is_feasible for each in said)
    missed = sum(each.is_feasible and not each.said_feasible for each in found)
    return (
        f"Said feasible: {len(said)} of {len(found)}, of which {wrong} were not; "
        f"{missed} feasible ones were called infeasible."
    )


def main(arguments: list[str] | None = None) -> int:
    """Prepare, draw, simulate and write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.surrogate_errors")
    parser.add_argument("--settings", type=int, default=150, help="of each problem")
    parser.add_argument("--seed", type=int, default=15)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    lines = [f"# What the surrogate says of plans it never saw ({datetime.now():%Y-%m-%d})", ""]
    lines.append(
        f"    python -m benchmarks.surrogate_errors --settings {options.settings} "
        f"--seed {options.seed}"
    )
    every: list[Outcome] = []
    for problem in PROBLEMS:
        found, report, prepared_s = outcomes(problem, options.settings, options.seed)
        every += found
        lines += ["", f"## {problem}", "", *metric_lines(found), "", feasible_line(found)]
        lines += ["", f"Prepared in {prepared_s:.1f} s of processor.", ""]
        lines += [f"* {line}" for line in report]
        print("\n".join(lines[-30:]), flush=True)
    lines += ["", "## All", "", *metric_lines(every), "", feasible_line(every)]
    text = "\n".join(lines) + "\n"
    publish(text, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
