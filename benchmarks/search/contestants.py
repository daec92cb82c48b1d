"""The ways to search that are compared, each a maker of an order of rows to evaluate."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import optuna
from optuna.samplers import BaseSampler

from benchmarks.search.problems import Problem
from engine.spec.measurement import Fidelity
from engine.spec.settings import Settings
from policies.objective import Objective
from policies.points import estimates_to_json
from tuner.search.samplers import DEFAULT, NUM_STARTUP, SamplerChoice
from tuner.search.suggest import constraint_values, suggest, values_of
from tuner.search.trials import TrialRecord, TrialState

# Rows in the order that a search evaluates them: each is told its point before the next is asked.
Search = Callable[[Problem, int], Iterator[int]]


def _tpe(seed: int, *, multivariate: bool, group: bool = False) -> BaseSampler:
    return optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=NUM_STARTUP, multivariate=multivariate, group=group
    )


def _gp(seed: int) -> BaseSampler:
    return optuna.samplers.GPSampler(
        seed=seed, n_startup_trials=NUM_STARTUP, deterministic_objective=True
    )


# A study that is made anew from its records at every ask, as a tuning job does.
REBUILT = {
    "TPE, each knob by itself": SamplerChoice(make=lambda seed: _tpe(seed, multivariate=False)),
    "TPE, multivariate": DEFAULT,
    "TPE, multivariate, group": SamplerChoice(
        make=lambda seed: _tpe(seed, multivariate=True, group=True), is_conditional=True
    ),
    "GP": SamplerChoice(make=_gp),
    "random": SamplerChoice(make=lambda seed: optuna.samplers.RandomSampler(seed=seed)),
}
CMA_ES = "CMA-ES"  # of a package of its own, left out where that is absent
# These keep what they know in the study itself, so theirs lives on between two asks.
KEPT: dict[str, Callable[[int], BaseSampler]] = {
    "NSGA-II": lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=10),
    "NSGA-III": lambda seed: optuna.samplers.NSGAIIISampler(seed=seed, population_size=10),
    CMA_ES: lambda seed: optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=1),
    "quasi-random (Sobol)": lambda seed: optuna.samplers.QMCSampler(
        seed=seed, scramble=True, warn_independent_sampling=False
    ),
}


def record(problem: Problem, number: int, row: int) -> TrialRecord:
    """What a trial of that row leaves behind."""
    point = problem.points[row]
    return TrialRecord(
        number=number,
        settings=point.settings,
        fidelity=Fidelity.SIMULATED,
        state=TrialState.COMPLETE,
        metrics=estimates_to_json(point.metrics),
        is_feasible=problem.is_met(row),
        reason="",
        seconds=0.0,
    )


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """Suggestions of one sampler by the tuner's own ``suggest``.

    ``prior``: what arithmetic says of the best settings of each plan is told beforehand.
    """

    choice: SamplerChoice
    prior: bool = False

    def __call__(self, problem: Problem, seed: int) -> Iterator[int]:
        prior = [problem.estimates[row] for row in problem.shortlist] if self.prior else []
        rows: dict[Settings, int] = {p.settings: i for i, p in enumerate(problem.points)}
        done: list[TrialRecord] = []
        while len(done) < len(problem.grid):
            found = suggest(
                problem.grid, problem.sla, done,
                seed=seed, number=len(done), count=1, prior=prior, choice=self.choice,
            )  # fmt: skip
            row = rows[found[0]]
            done.append(record(problem, len(done), row))
            yield row


@dataclass(frozen=True, kw_only=True)
class Guided:
    """Estimates corrected by what was found. ``choice`` None: without Optuna; else Optuna's
    suggestions, ``count`` of them, are ranked by the corrected estimates in every other
    evaluation, from the second."""

    choice: SamplerChoice | None = None
    count: int = 8

    def __call__(self, problem: Problem, seed: int) -> Iterator[int]:
        guide = problem.guide
        rows: dict[Settings, int] = {p.settings: i for i, p in enumerate(problem.points)}
        done: list[TrialRecord] = []
        prior = [problem.estimates[row] for row in problem.shortlist]
        found: list[int] = []
        while len(done) < len(problem.grid):
            points = [problem.points[row] for row in found]
            if self.choice is not None and len(done) % 2 == 1:
                options = suggest(
                    problem.grid, problem.sla, done,
                    seed=seed, number=len(done), count=self.count, prior=prior, choice=self.choice,
                )  # fmt: skip
                candidates = [rows[s] for s in options]
            else:
                candidates = [row for row in range(len(problem.grid)) if row not in set(found)]
            row = guide.ranked(candidates, points)[0]
            found.append(row)
            done.append(record(problem, len(done), row))
            yield row


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Suggestions of one sampler whose study lives on."""

    make: Callable[[int], BaseSampler]

    def __call__(self, problem: Problem, seed: int) -> Iterator[int]:
        study = optuna.create_study(direction="minimize", sampler=self.make(seed))
        taken: set[int] = set()
        while len(taken) < len(problem.grid):
            trial = study.ask()
            asked = {
                k.name: trial.suggest_int(k.name, k.low, k.high, log=k.is_log)
                for k in problem.grid.knobs
            }
            row = problem.grid.nearest(asked, taken)
            taken.add(row)
            point = problem.points[row]
            for key, value in constraint_values(point, problem.sla).items():
                trial.set_constraint(key, value)
            study.tell(trial, values_of(point, problem.sla, Objective.DEVICES))
            yield row


def ranking_alone(problem: Problem, _: int) -> Iterator[int]:
    """The best estimate of each plan, best plans first; then all the others, best first."""
    first = problem.shortlist
    yield from first
    rest = set(range(len(problem.grid))) - set(first)
    yield from sorted(rest, key=lambda row: problem.ranks[row])


def contestants(names: str = "") -> dict[str, Search]:
    """All of them by name, or those whose name has one of the words in ``names``."""
    every: dict[str, Search] = {name: Rebuilt(choice=choice) for name, choice in REBUILT.items()}
    every |= {
        name: Kept(make=make)
        for name, make in KEPT.items()
        if name != CMA_ES or importlib.util.find_spec("cmaes") is not None
    }
    every["TPE, multivariate + prior"] = Rebuilt(choice=DEFAULT, prior=True)
    every["estimates alone"] = ranking_alone
    every["corrected estimates alone"] = Guided()
    for name, choice in REBUILT.items():
        every[f"corrected estimates, {name} by turns"] = Guided(choice=choice)
    wanted = [word.strip() for word in names.split("|") if word.strip()]
    if not wanted:
        return every
    return {name: every[name] for name in every if name in wanted}
