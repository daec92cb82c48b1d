"""Infeasible questions, drawn by seed, and whether what ``plan`` names as a way out holds.

    python -m benchmarks.infeasible_questions --out benchmarks/reports/DATE-infeasible.md

Of each question that no plan meets, every load, number of devices and relaxed bound that is named
is planned once more, and so is one that is 5 % tighter (5 % more load, 5 % less bound, one device
less where 5 % is less than one). The first must meet the SLA, the second must not.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from policies.constraint import Op
from policies.sla import Sla
from tuner.described.parse import describe_node
from tuner.planner.planner import PlanReport, make_plan
from tuner.planner.replan import Replanner, replanner
from tuner.planner.ways_out import WaysOut, find_ways_out, with_bound
from tuner.spec.errors import TunerError
from tuner.workload.parse import parse_workload
from tuner.workload.stretch import stretch

MODELS = ("llama-3.1-8b", "qwen2.5-7b", "llama-3.1-70b")
NODES = ("1xh100", "2xh100", "2xh200", "4xh100", "4xh200")
SHAPES = (
    "poisson:rate={rate:g}",
    "gamma:rate={rate:g},cv=2",
    "burst:rate={rate:g},peak={peak:g},on_s=5,off_s=10",
)
CLOSED = "closed:concurrency={clients}"
TIGHTER = 0.05


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question in the words of the command line."""

    model: str
    hardware: str
    workload: str
    sla: str

    def __str__(self) -> str:
        return f"{self.model}, {self.hardware}, `{self.workload}`, `{self.sla}`"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One way out: what was named, whether it holds, and whether a tighter one does not."""

    what: str
    holds: bool | None
    tighter_fails: bool | None

    @property
    def is_right(self) -> bool:
        return self.holds is not False and self.tighter_fails is not False


def draw_questions(seed: int, requests: int) -> Iterator[Asked]:
    """Questions without end, most of them infeasible."""
    rng = np.random.default_rng(seed)
    while True:
        rate = float(np.round(np.exp(rng.uniform(np.log(8), np.log(150))), 1))
        lengths = f",input={rng.choice((256, 1024, 3000))},output={rng.choice((16, 64, 200))}"
        if rng.random() < 0.2:
            head = CLOSED.format(clients=int(rng.choice((32, 96, 256))))
        else:
            head = str(rng.choice(SHAPES)).format(rate=rate, peak=4 * rate)
        ttft, tpot = int(rng.choice((150, 400, 1000))), int(rng.choice((12, 20, 35)))
        sla = f"p95_ttft_ms<={ttft},p95_tpot_ms<={tpot}"
        if rng.random() < 0.3:
            sla += ",attainment>=0.9"
        yield Asked(
            model=str(rng.choice(MODELS)),
            hardware=str(rng.choice(NODES)),
            workload=f"{head}{lengths},requests={requests}",
            sla=sla,
        )


def check_ways(report: PlanReport, ways: WaysOut, replan: Replanner) -> list[Check]:
    """Every way out planned once more, and a tighter one."""
    load, sla, devices = report.question.workload, report.question.sla, report.num_devices

    def is_met(*, factor: float = 1.0, sla: Sla = sla, count: int = devices) -> bool:
        try:
            return replan(stretch(load, factor), sla, count).selection.best is not None
        except TunerError:
            return False

    checks = []
    if ways.load_factor is None:
        checks.append(Check(what="load: none", holds=None, tighter_fails=not is_met(factor=0.01)))
    else:
        factor = ways.load_factor
        more = factor * (1 + TIGHTER)
        if load.closed is not None:
            more = max(more, factor + 1 / load.closed.concurrency)
        checks.append(
            Check(
                what=f"load x{factor:.3g}",
                holds=is_met(factor=factor),
                tighter_fails=not is_met(factor=more) if more < 1 else True,
            )
        )
    if (count := ways.num_devices) is not None:
        fewer = min(count - 1, int(count * (1 - TIGHTER)))
        checks.append(
            Check(
                what=f"{count} devices",
                holds=is_met(count=count),
                tighter_fails=fewer <= devices or not is_met(count=fewer),
            )
        )
    for way in ways.relaxations:
        if way.relaxed is None:
            text = f"{way.constraint}: {way.reason}"
            checks.append(Check(what=text, holds=None, tighter_fails=None))
            continue
        closer = 1 - TIGHTER if way.constraint.op is Op.AT_MOST else 1 + TIGHTER
        bound = way.relaxed.bound
        checks.append(
            Check(
                what=str(way.relaxed),
                holds=is_met(sla=with_bound(sla, way.constraint, bound)),
                tighter_fails=not is_met(sla=with_bound(sla, way.constraint, bound * closer)),
            )
        )
    return checks


def answer(asked: Asked, jobs: int) -> list[Check] | None:
    """The checks of a question; None where a plan meets it, or none can run the model."""
    node = describe_node(model=asked.model, hardware=asked.hardware)
    load, sla = parse_workload(asked.workload, seed=0), Sla.parse(asked.sla)
    try:
        report = make_plan(node, load, sla, jobs=jobs)
    except TunerError:
        return None
    if report.selection.best is not None:
        return None
    with replanner(report, jobs=jobs) as replan:
        return check_ways(report, find_ways_out(report, replan), replan)


def report_lines(found: list[tuple[Asked, list[Check], float]], command: str) -> Iterator[str]:
    """The report as Markdown."""
    checks = [c for _, each, _ in found for c in each]
    named = [c for c in checks if c.holds is not None]
    tried = [c for c in checks if c.tighter_fails is not None]
    yield f"# Infeasible questions: do the ways out hold? ({datetime.now():%Y-%m-%d})\n"
    yield f"    {command}\n"
    yield (
        f"{len(found)} infeasible questions. Named loads, devices and bounds that hold: "
        f"{sum(c.holds is True for c in named)} of {len(named)}. Of those 5 % tighter, missed as "
        f"they must be: {sum(c.tighter_fails is True for c in tried)} of {len(tried)}.\n"
    )
    words = {True: "yes", False: "NO", None: "-"}
    for number, (asked, each, seconds) in enumerate(found, start=1):
        yield f"\n{number}. {asked} ({seconds:.0f} s of processor)\n"
        yield "\n   | named | holds | 5 % tighter misses |\n   |---|---|---|"
        for c in each:
            yield f"   | {c.what} | {words[c.holds]} | {words[c.tighter_fails]} |"


def main() -> int:
    """Ask, check and write the report; 1 where a way out does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.infeasible_questions")
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--seed", type=int, default=15)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    command = (
        f"python -m benchmarks.infeasible_questions --questions {options.questions} "
        f"--requests {options.requests} --seed {options.seed}"
    )
    text = ""
    found: list[tuple[Asked, list[Check], float]] = []
    for asked in draw_questions(options.seed, options.requests):
        if len(found) == options.questions:
            break
        begin_s = time.process_time()
        checks = answer(asked, options.jobs)
        if checks is None:
            continue
        found.append((asked, checks, time.process_time() - begin_s))
        wrong = [c.what for c in checks if not c.is_right]
        print(len(found), asked, "wrong: " + "; ".join(wrong) if wrong else "right", flush=True)
        # After each question: one that is stopped has its report, too.
        text = "\n".join(report_lines(found, command)) + "\n"
        if options.out is not None:
            options.out.write_text(text)
    print(text)
    return int(any(not c.is_right for _, checks, _ in found for c in checks))


if __name__ == "__main__":
    raise SystemExit(main())
