"""Evaluations until a search is within 1 % of the exhaustive optimum, by sampler.

    python -m benchmarks.search_samplers --out benchmarks/reports/DATE-search-samplers.md

Every combination of five problems is simulated once (kept in runs/), then each sampler searches
them from ten seeds. A search has arrived when it has evaluated settings that meet the SLA on as
many devices as the optimum, with its latency within 1 % of the optimum's.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

from benchmarks.search.contestants import Search, contestants
from benchmarks.search.problems import PROBLEMS, UNSEEN, Problem

TARGET_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Evaluations that each seed took (infinite: not within the limit), and CPU seconds of its
    decisions per evaluation."""

    evaluations: tuple[float, ...]
    ask_ms: float

    @property
    def median(self) -> float:
        return median(self.evaluations)


def play(problem: Problem, search: Search, seeds: int, limit: int) -> Outcome:
    """Searches from each seed, until they arrive or have made ``limit`` evaluations."""
    took, asks, began_s = [], 0, time.process_time()
    for seed in range(seeds):
        found = math.inf
        for number, row in enumerate(islice(search(problem, seed), limit), start=1):
            asks += 1
            if row in problem.hits:
                found = number
                break
        took.append(found)
    spent_ms = 1e3 * (time.process_time() - began_s)
    return Outcome(evaluations=tuple(took), ask_ms=spent_ms / asks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", default="", help="names of contestants, with | between")
    parser.add_argument("--problems", default="", help="names of problems, with | between")
    parser.add_argument("--limit", type=float, default=2.0, help="in shares of the target")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    every = (*PROBLEMS, *UNSEEN)
    wanted = options.problems.split("|") if options.problems else [p.name for p in every]
    problems = [Problem(asked) for asked in every if asked.name in wanted]
    outcomes: dict[str, dict[str, Outcome]] = {}
    for problem in problems:
        print(describe(problem), flush=True)
    for name, search in contestants(options.only).items():
        outcomes[name] = {}
        for problem in problems:
            limit = math.ceil(options.limit * TARGET_SHARE * len(problem.grid))
            outcome = play(problem, search, options.seeds, limit)
            outcomes[name][problem.asked.name] = outcome
            print(f"{name} | {problem.asked.name} | {told(outcome, problem)}", flush=True)
    if options.out is not None:
        options.out.write_text(report(problems, outcomes, options.seeds, options.limit))


def describe(problem: Problem) -> str:
    """A problem in one line, with how rare what is looked for is."""
    size, hits = len(problem.grid), len(problem.hits)
    met = sum(problem.is_met(row) for row in range(size))
    devices, latency = problem.best
    return (
        f"{problem.asked.name}: {size} combinations, {met} meet the SLA, {hits} within 1 % of the "
        f"optimum ({devices} devices, latency {math.exp(latency):.3f} of its bounds), "
        f"{len(problem.shortlist)} plans; 5 % are {int(TARGET_SHARE * size)} evaluations"
    )


def told(outcome: Outcome, problem: Problem) -> str:
    size = len(problem.grid)
    within = sum(n <= TARGET_SHARE * size for n in outcome.evaluations)
    share = "not found" if math.isinf(outcome.median) else f"{100 * outcome.median / size:.1f} %"
    middle = "-" if math.isinf(outcome.median) else f"{outcome.median:g}"
    total = len(outcome.evaluations)
    return f"{middle} ({share}), {within} of {total}, {outcome.ask_ms:.0f} ms"


def report(
    problems: list[Problem], outcomes: dict[str, dict[str, Outcome]], seeds: int, limit: float
) -> str:
    """The tables of a report."""
    lines = ["# Evaluations until within 1 % of the exhaustive optimum", ""]
    lines += [f"* {describe(problem)}" for problem in problems]
    lines += [
        "",
        f"{seeds} seeds each; a search was given up after {limit:g} times 5 % of the combinations. "
        "Median evaluations (share of all combinations), seeds that arrived within 5 %, CPU time "
        "of a decision.",
        "",
        "| search | " + " | ".join(p.asked.name for p in problems) + " |",
        "|---|" + "---|" * len(problems),
    ]
    for name, found in outcomes.items():
        cells = [told(found[p.asked.name], p) for p in problems]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
