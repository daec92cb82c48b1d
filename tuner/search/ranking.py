"""Which settings look best: by simulated points, or by the surrogate for those not simulated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.spec.settings import Settings
from tuner.search.context import TuningContext
from tuner.search.design import rank_point
from tuner.search.surrogate import TARGETS, Example, Load, Surrogate, features, fit_surrogate
from tuner.search.trials import TrialRecord

# How many combinations have their estimates solved for one proposal: seconds of arithmetic, once a
# job.
MAX_CANDIDATES = 1500


def candidates(context: TuningContext, done: Sequence[TrialRecord], *, seed: int) -> list[int]:
    """Rows of the grid that were not tried: all, or as many as can be ranked at once."""
    grid = context.grid
    taken = {row for trial in done if (row := grid.row_of(trial.settings)) is not None}
    rows = np.arange(len(grid))
    if len(grid) > MAX_CANDIDATES:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MAX_CANDIDATES, replace=False))
    return [int(row) for row in rows if int(row) not in taken]


def ranked_by_estimate(
    context: TuningContext, rows: list[int], done: Sequence[TrialRecord]
) -> list[Settings]:
    """``rows`` of the grid by arithmetic corrected by what simulation and trials found, best
    first."""
    tried = {trial.settings for trial in done}
    points = [point for settings, point in context.design.items() if settings not in tried]
    points += [point for trial in done if (point := trial.point) is not None]
    ranked = context.corrected.ranked(rows, points)
    return [context.grid.settings(row) for row in ranked]


def trained_surrogate(context: TuningContext, done: Sequence[TrialRecord]) -> Surrogate | None:
    """The surrogate over all simulated points and the trials so far; its features are step times,
    so None where those are not known."""
    if context.simulator.is_blind:
        return None
    load = described_load(context)
    examples = list(context.examples)
    for trial in done:
        if (point := trial.point) is not None:
            settings = trial.settings
            known = features(settings, load, context.simulator.timer(settings.plan))
            examples.append(Example(point=point, features=known))
    return fit_surrogate(examples, keys=TARGETS, seed=context.spec.seed)


def shortlist(context: TuningContext) -> list[Settings]:
    """The best simulated settings of each plan, best plans first; plans that can run lead.

    If nothing can be simulated, each plan with the caps that it would have by default.
    """
    if context.simulator.is_blind:
        return [context.default_settings(plan) for plan in context.space.plans]
    sla = context.sla
    best: dict[str, tuple[tuple[float, ...], Settings]] = {}
    for settings, point in context.design.items():
        order = rank_point(point, sla, context.spec.goal.objective)
        plan = str(settings.plan)
        if plan not in best or order < best[plan][0]:
            best[plan] = (order, settings)
    ordered = sorted(
        best.values(), key=lambda entry: (not context.can_run(entry[1].plan), entry[0])
    )
    return [settings for _, settings in ordered]


def described_load(context: TuningContext) -> Load:
    """The descriptors of the workload that trials run."""
    return Load.of(context.trial_workload)
