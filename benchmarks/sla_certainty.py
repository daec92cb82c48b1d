"""Question: is P(SLA met) what it says?

    python -m benchmarks.sla_certainty --data ../shared/silicon --out FILE.md

Draws pairs of a plan and a question by seed, asks for P, and then judges each pair by runs that P
never saw: another draw of arrivals and lengths, a load that is off a little, and steps as wrong as
those of a published run that the cost model's fit never saw (its factor for steps with prompts and
the one for decodes, taken together as they occurred). Two ways to say P stand beside each other:
*before*, the product of the constraints' chances in one draw with one width for all steps, and
*now* (``tuner/planner/certainty.py``).

*Held out*: the widths that P goes by are then those of the other groups of runs of the same system
than the one that its judge's steps come from, and the question counts as one about a model that was
never served there. *All groups*: it counts as one about a model that was.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from engine.spec.measurement import Fidelity
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.points import INTERVAL_Z, Estimate, OperatingPoint
from policies.report import flat_metrics
from policies.sla import Sla
from tuner.backends import load_profile
from tuner.backends.step_errors import Phase, ServedGroup, StepErrors
from tuner.calibration.served import SOURCES
from tuner.calibration.served_rows import ServedRow, read_served_rows
from tuner.calibration.step_errors import (
    MOST_LOG,
    Needed,
    needed_factors,
    of_system,
    step_errors,
)
from tuner.described.document import estimates_of
from tuner.described.node import Node
from tuner.described.parse import describe_node
from tuner.described.step_error import mean_active
from tuner.planner.certainty import LOAD_OFF, with_runs
from tuner.planner.fitting import needed_kv_tokens
from tuner.planner.pool import Workers
from tuner.planner.question import Question
from tuner.spec.errors import TunerError
from tuner.step_model.timer import StepScale
from tuner.workload.parse import parse_workload
from tuner.workload.slices import at_rate

MODELS = ("llama-3.1-8b", "qwen2.5-7b", "llama-3.1-70b", "qwen3-32b")
HARDWARE = ("1xh100", "2xh100", "4xh100", "2xh200", "4xh200")
SHAPES = (
    "poisson:rate={rate:g}",
    "gamma:rate={rate:g},cv=2",
    "burst:rate={rate:g},peak={peak:g},on_s=5,off_s=10",
)
CLOSED = "closed:concurrency={clients}"
# Bounds are drawn around what the plan does, so that most questions are open.
AROUND_LOG = 0.2
BINS = (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0)
FRESH_SEED = 7_000_003


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One plan and one question about it."""

    backend: str
    model: str
    hardware: str
    plan: str
    workload: str
    sla: str


@dataclass(frozen=True, kw_only=True)
class Told:
    """P by both rules, and which of the judging runs met the SLA. ``group``: the one that their
    steps are wrong like, where it was held out."""

    before: float
    now: float
    met: tuple[bool, ...]
    cpu_s: float
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Where judging runs take the errors of their steps from: runs of one backend."""

    needed: tuple[Needed, ...]

    def of_backend(self, name: str) -> list[Needed]:
        """Those whose error is one of step times; what is not, P does not cover."""
        return [
            each
            for each in self.needed
            if each.row.backend == name and max(abs(each.prefill), abs(each.decode)) < MOST_LOG
        ]


def like(wrong: list[Needed], errors: StepErrors, clients: float, tp: int) -> list[Needed]:
    """The runs with as many requests at once and such a degree, where there are any."""
    band = errors.band(Phase.DECODE, clients, tp)
    return [each for each in wrong if band.holds(each.row.concurrency, each.row.tp)] or wrong


def draw_pair(rng: np.random.Generator, requests: int) -> Pair | None:
    """A pair whose plan runs the model and is not hopelessly overloaded; None: drawn in vain."""
    hardware = str(rng.choice(HARDWARE))
    degrees = [(dp, tp) for dp in (1, 2, 4) for tp in (1, 2, 4) if dp * tp <= int(hardware[0])]
    dp, tp = degrees[int(rng.integers(len(degrees)))]
    rate = float(np.round(dp * tp * np.exp(rng.uniform(np.log(0.5), np.log(16))), 2))
    lengths = f",input={rng.choice((256, 1024, 3000))},output={rng.choice((32, 100, 250))}"
    spread = ",input_cv=0.5,output_cv=0.5" if rng.random() < 0.5 else ""
    if rng.random() < 0.25:
        head = CLOSED.format(clients=int(rng.choice((4, 16, 48))))
    else:
        head = str(rng.choice(SHAPES)).format(rate=rate, peak=3 * rate)
    drawn = Pair(
        backend=str(rng.choice(tuple(SOURCES))),
        model=str(rng.choice(MODELS)),
        hardware=hardware,
        plan=f"dp={dp},tp={tp}",
        workload=f"{head}{lengths}{spread},requests={requests}",
        sla="p95_ttft_ms<=1,p95_tpot_ms<=1",
    )
    offsets = rng.normal(AROUND_LOG / 2, AROUND_LOG, 3)
    with_attainment = rng.random() < 0.25
    try:
        question, settings = _question(drawn, seed=0)
        metrics = _flat(question, settings, 1.0)
    except TunerError:
        return None
    ttft, tpot = metrics.get("p95_ttft_ms"), metrics.get("p95_tpot_ms")
    span_s = question.workload.span_s
    if ttft is None or tpot is None or (span_s and ttft > 1e3 * span_s):
        return None
    bounds = (ttft * math.exp(offsets[0]), tpot * math.exp(offsets[1]))
    sla = f"p95_ttft_ms<={bounds[0]:.4g},p95_tpot_ms<={bounds[1]:.4g}"
    if with_attainment:
        sla += ",attainment>=0.9"
    return replace(drawn, sla=sla)


def tell(pair: Pair, number: int, judges: Judge, *, runs: int, held_out: bool) -> Told:
    """P of the pair by both rules, and its judging runs."""
    begin_s = time.process_time()
    rng = np.random.default_rng([number, 0x5AFE])
    wrong = judges.of_backend(pair.backend)
    question, settings = _question(pair, seed=0)
    metrics = _flat(question, settings, 1.0)
    errors = question.node.backend.step_errors
    assert errors is not None, "fitted backends have step errors"
    clients = mean_active(settings, question.workload, metrics) / settings.plan.dp
    wrong = like(wrong, errors, clients, settings.plan.tp)
    group = ""
    if held_out:
        groups = sorted({each.row.group for each in wrong})
        group = groups[int(rng.integers(len(groups)))]
        own, beside = of_system(judges.needed, pair.backend)
        others = [each for each in own if each.row.group != group]
        wrong = [each for each in wrong if each.row.group == group]
        errors = replace(step_errors(others, beside), groups=())
    else:
        device = question.node.hardware.device.name
        errors = replace(errors, groups=(ServedGroup(device=device, model=pair.model),))
    backend = replace(question.node.backend, step_errors=errors)
    question = replace(question, node=replace(question.node, backend=backend))
    exact = {key: Estimate.exact(value) for key, value in metrics.items()}
    asked = OperatingPoint(settings=settings, fidelity=Fidelity.SIMULATED, metrics=exact)
    with Workers(1) as workers:
        now = with_runs(workers, question, [asked])[settings].probability(question.sla)
    met = []
    for run in range(runs):
        fresh = parse_workload(pair.workload, seed=FRESH_SEED + 1000 * number + run)
        load = math.exp(rng.normal() * math.log1p(LOAD_OFF) / INTERVAL_Z)
        if fresh.closed is None:
            fresh = at_rate(fresh, load)
        error = wrong[int(rng.integers(len(wrong)))]
        scale = StepScale(prefill=math.exp(error.prefill), decode=math.exp(error.decode))
        flat = _flat(replace(question, workload=fresh), settings, scale)
        met.append(all(c.key in flat and c.is_met_by(flat[c.key]) for c in question.sla.per_run))
    return Told(
        before=_before(question, settings, metrics),
        now=now,
        met=tuple(met),
        cpu_s=time.process_time() - begin_s,
        group=group,
    )


def _before(question: Question, settings: Settings, metrics: dict[str, float]) -> float:
    """The product of the chances, in one draw, with one width for all steps."""
    interval = question.node.interval
    ends = [_flat(question, settings, math.exp(sign * interval)) for sign in (1, -1)]
    estimates = estimates_of([metrics, *ends])
    return math.prod(
        estimates[c.key].probability(c) if c.key in estimates else 0.0 for c in question.sla.per_run
    )


def _flat(question: Question, settings: Settings, scale: float | StepScale) -> dict[str, float]:
    result = question.node.simulate(
        settings, question.workload, seed=question.seed, step_scale=scale
    )
    return flat_metrics(result.measurement, question.sla)


@cache
def _node(backend: str, model: str, hardware: str) -> Node:
    return describe_node(model=model, hardware=hardware, backend=backend)


def _question(pair: Pair, *, seed: int) -> tuple[Question, Settings]:
    """Raises TunerError where the plan cannot run the model."""
    node = _node(pair.backend, pair.model, pair.hardware)
    workload = parse_workload(pair.workload, seed=seed)
    degrees = dict(part.split("=") for part in pair.plan.split(","))
    plan = ParallelPlan(dp=int(degrees["dp"]), tp=int(degrees["tp"]))
    question = Question(node=node, workload=workload, sla=Sla.parse(pair.sla), seed=seed)
    needed = needed_kv_tokens(node, workload)
    memory = node.memory(plan, needed_kv_tokens=needed)
    if memory.reason is not None:
        raise TunerError(memory.reason)
    return question, Settings(plan=plan, caps=node.backend.default_caps)


def reliability(rows: Sequence[tuple[float, float]]) -> list[tuple[int, float, float]]:
    """Of each bin of P: the pairs in it, their mean P and the share of runs that met; NaN where it
    is empty."""
    found = []
    for low, high in pairwise(BINS):
        inside = [row for row in rows if low <= row[0] < high or row[0] == high == BINS[-1]]
        means = np.mean(inside, axis=0) if inside else (math.nan, math.nan)
        found.append((len(inside), float(means[0]), float(means[1])))
    return found


def calibration_error(rows: Sequence[tuple[float, float]]) -> float:
    """Mean over pairs of |mean P - share met| of their bin."""
    return sum(n * abs(p - met) for n, p, met in reliability(rows) if n) / len(rows)


def brier(told: Sequence[Told], which: str) -> float:
    """Mean squared distance of P from what each judging run did."""
    return float(np.mean([(getattr(t, which) - met) ** 2 for t in told for met in t.met]))


def report_lines(told: dict[str, list[Told]], command: str, runs: int) -> Iterator[str]:
    """The report as Markdown."""
    yield f"# P(SLA met): is it what it says? ({datetime.now():%Y-%m-%d})\n"
    yield f"    {command}\n"
    for name, each in told.items():
        if not each:
            continue
        yield f"\n## {name}: {len(each)} pairs, {runs} judging runs each\n"
        yield "| rule | calibration error | Brier | P > 0.95: pairs | of their runs missed |"
        yield "|---|---:|---:|---:|---:|"
        for which in ("before", "now"):
            rows = [(getattr(t, which), float(np.mean(t.met))) for t in each]
            sure = [met for p, met in rows if p > 0.95]
            missed = f"{1 - float(np.mean(sure)):.1%}" if sure else "-"
            yield (
                f"| {which} | {calibration_error(rows):.3f} | {brier(each, which):.3f} | "
                f"{len(sure)} | {missed} |"
            )
        yield "\n| P | before: pairs | mean P | met | now: pairs | mean P | met |"
        yield "|---|---:|---:|---:|---:|---:|---:|"
        tables = [
            reliability([(getattr(t, which), float(np.mean(t.met))) for t in each])
            for which in ("before", "now")
        ]
        for (low, high), *both in zip(pairwise(BINS), *tables, strict=True):
            cells = (f"{n} | {p:.2f} | {met:.2f}" if n else "0 | - | -" for n, p, met in both)
            yield f"| {low:g} to {high:g} | {' | '.join(cells)} |"
        yield f"\nProcessor time: {sum(t.cpu_s for t in each):.0f} s."


def _tell(task: tuple[Pair, int, Judge, int, bool]) -> Told:
    pair, number, judges, runs, held_out = task
    return tell(pair, number, judges, runs=runs, held_out=held_out)


def kept_factors(data: Path, kept: Path | None, jobs: int) -> list[Needed]:
    """The published runs' factors on step times, from ``kept`` where it is there."""
    if kept is not None and kept.exists():
        return [
            Needed(row=ServedRow(**each.pop("row")), **each)
            for each in json.loads(kept.read_text())
        ]
    rows = read_served_rows(data)
    found = [
        each
        for name in SOURCES
        for each in needed_factors(rows, load_profile(name), data, processes=jobs)
    ]
    if kept is not None:
        kept.write_text(json.dumps([asdict(each) for each in found]))
    return found


def main(arguments: list[str] | None = None) -> int:
    """Draw, ask, judge and write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sla_certainty")
    parser.add_argument("--data", type=Path, required=True, help="the folder of measurements")
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--runs", type=int, default=4, help="judging runs of each pair")
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument("--held-out", type=int, help="pairs judged by groups held out (all)")
    parser.add_argument("--only-held-out", action="store_true", help="leave out all groups")
    parser.add_argument("--seed", type=int, default=15)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--factors", type=Path, help="keeps the runs' factors from call to call")
    parser.add_argument("--kept", type=Path, help="writes each pair's P and runs here, too")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    judges = Judge(needed=tuple(kept_factors(options.data, options.factors, options.jobs)))
    rng = np.random.default_rng(options.seed)
    pairs: list[Pair] = []
    while len(pairs) < options.pairs:
        if (pair := draw_pair(rng, options.requests)) is not None:
            pairs.append(pair)
    told: dict[str, list[Told]] = {}
    parts = (("All groups", False), ("Held out", True))
    for name, held_out in parts[1:] if options.only_held_out else parts:
        asked = pairs[: options.held_out] if held_out else pairs
        tasks = [(pair, n, judges, options.runs, held_out) for n, pair in enumerate(asked)]
        if options.jobs == 1:
            told[name] = [_tell(task) for task in tasks]
        else:
            with ProcessPoolExecutor(options.jobs) as pool:
                told[name] = list(pool.map(_tell, tasks, chunksize=4))
        print(f"{name}: {sum(t.cpu_s for t in told[name]):.0f} s", flush=True)
    command = (
        f"python -m benchmarks.sla_certainty --data ../shared/silicon --pairs {options.pairs} "
        f"--runs {options.runs} --requests {options.requests} --seed {options.seed}"
    )
    command += " --only-held-out" if options.only_held_out else ""
    text = "\n".join(report_lines(told, command, options.runs)) + "\n"
    print(text)
    if options.out is not None:
        options.out.write_text(text)
    if options.kept is not None:
        kept = {name: [asdict(each) for each in every] for name, every in told.items()}
        options.kept.write_text(json.dumps(kept))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
