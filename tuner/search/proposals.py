"""What a trial tries: the baseline, the simulated design, Optuna's suggestions, and arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from engine.spec.settings import Settings
from tuner.search.context import TuningContext
from tuner.search.ranking import candidates, ranked_by_estimate, shortlist
from tuner.search.suggest import suggest
from tuner.search.trials import TrialRecord

NUM_SUGGESTIONS = 8
# Who proposes a trial, by its number modulo this; arithmetic proposes the rest.
NUM_TURNS = 3
DESIGN_TURN, OPTUNA_TURN = 1, 2


def propose(context: TuningContext, number: int, done: Sequence[TrialRecord]) -> Settings:
    """What trial ``number`` tries: the baseline, then by turns of three the best of the simulated
    design, what Optuna suggests from the design and the trials so far, and the best of all
    combinations by arithmetic corrected by both. Optuna's suggestions are ranked by the latter.
    """
    if number == 0:
        return context.baseline
    known = [trial for trial in done if trial.number < number]
    tried = {trial.settings for trial in known}
    fresh = [s for s in shortlist(context) if s not in tried]
    if context.simulator.is_blind:
        return fresh[0] if fresh else _suggested_blindly(context, known, number)
    turn = number % NUM_TURNS
    if turn == DESIGN_TURN and fresh:
        return fresh[0]
    options = _suggested(context, known, number) if turn == OPTUNA_TURN else []
    rows = options or candidates(context, known, seed=context.spec.seed)
    return ranked_by_estimate(context, rows, known)[0] if rows else context.baseline


def _suggested_blindly(
    context: TuningContext, done: Sequence[TrialRecord], number: int
) -> Settings:
    """If no step time is known, nothing is better than what Optuna suggests from the trials."""
    rows = _suggested(context, done, number) or candidates(context, done, seed=number)
    return context.grid.settings(rows[0]) if rows else context.baseline


def _suggested(context: TuningContext, done: Sequence[TrialRecord], number: int) -> list[int]:
    """Rows that Optuna suggests."""
    suggestions = suggest(
        context.grid,
        context.sla,
        done,
        seed=context.spec.seed,
        number=number,
        count=NUM_SUGGESTIONS,
        objective=context.spec.goal.objective,
        prior=list(context.design.values()),
    )
    rows = [row for s in suggestions if (row := context.grid.row_of(s)) is not None]
    return [row for row in rows if context.why_not(context.grid.settings(row)) is None]
