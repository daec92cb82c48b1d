"""Suggestions from Optuna, rebuilt from the trial records at every ask.

The records are the only truth: a study is made anew in memory from them and the sampler seeded from
(seed, trial number), so a search that was interrupted goes on as if it had not been. A sampler's
wish is turned into the nearest feasible combination that was not tried yet, so that no trial is
lost to one that cannot run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from engine.spec.settings import Settings
from policies.objective import Objective
from policies.points import OperatingPoint
from policies.sla import Sla
from tuner.search.grid import Grid, Knob, Numbers
from tuner.search.samplers import DEFAULT, SamplerChoice
from tuner.search.trials import TrialRecord

if TYPE_CHECKING:  # it is imported once somebody asks: preparing and recommending do without
    import optuna
    from optuna.distributions import BaseDistribution, IntDistribution

# Values are capped at this; a point that failed, or has none, gets it.
WORST = 10.0


def suggest(
    grid: Grid,
    sla: Sla,
    trials: Sequence[TrialRecord],
    *,
    seed: int,
    number: int,
    count: int,
    objective: Objective = Objective.DEVICES,
    prior: Sequence[OperatingPoint] = (),
    choice: SamplerChoice = DEFAULT,
) -> list[Settings]:
    """``count`` settings worth trying as trial ``number``, given all earlier ones; fewer if the
    grid has no more.

    ``prior`` are points of a cheaper fidelity: they count until their settings are tried. Minimises
    what ``objective`` looks for, with the SLA as constraints. The same arguments give the same
    answer.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = choice.make(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
    num_sides = 2 if objective is Objective.PARETO else 1
    study = optuna.create_study(directions=["minimize"] * num_sides, sampler=sampler)
    known = [t for t in sorted(trials, key=lambda t: t.number) if t.number < number]
    tried = {trial.settings for trial in known}
    points = [p for p in prior if p.settings not in tried]
    points += [point for trial in known if (point := trial.point) is not None]
    for point in points:
        study.add_trial(_frozen(grid, sla, point, objective, choice))
    taken = {row for settings in tried if (row := grid.row_of(settings)) is not None}
    found: list[int] = []
    while len(found) < min(count, len(grid) - len(taken)):
        found.append(grid.nearest(_ask(study, grid, choice), taken | set(found)))
    return [grid.settings(row) for row in found]


def distribution(knob: Knob) -> IntDistribution:
    """A knob as Optuna wants it."""
    from optuna.distributions import IntDistribution

    return IntDistribution(knob.low, knob.high, log=knob.is_log)


def values_of(point: OperatingPoint, sla: Sla, objective: Objective) -> list[float]:
    """What a search minimises: one number that orders as ``objective`` does, or its two sides."""
    return [v if math.isfinite(v) else WORST for v in objective.values(point, sla)]


def constraint_values(point: OperatingPoint, sla: Sla) -> dict[str, float]:
    """Each SLA constraint as Optuna wants it: at most 0 where it is met."""
    return {c.key: float(np.clip(-point.margin(c), -WORST, WORST)) for c in sla.constraints}


def _ask(study: optuna.Study, grid: Grid, choice: SamplerChoice) -> Numbers:
    trial = study.ask()
    asked: Numbers = {}
    for knob in grid.knobs:
        if not (choice.is_conditional and grid.is_idle(knob, asked)):
            asked[knob.name] = trial.suggest_int(knob.name, knob.low, knob.high, log=knob.is_log)
    return asked


def _frozen(
    grid: Grid, sla: Sla, point: OperatingPoint, objective: Objective, choice: SamplerChoice
) -> optuna.trial.FrozenTrial:
    from optuna.trial import create_trial

    numbers = grid.numbers_of(point.settings)
    distributions: dict[str, BaseDistribution] = {}
    before: Numbers = {}
    for knob in grid.knobs:
        if not (choice.is_conditional and grid.is_idle(knob, before)):
            distributions[knob.name] = distribution(knob)
            before[knob.name] = numbers[knob.name]
    return create_trial(
        values=values_of(point, sla, objective),
        params=dict(before),
        distributions=distributions,
        constraints=None if objective is Objective.PARETO else constraint_values(point, sla),
    )
