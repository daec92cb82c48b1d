"""Tuning: prepare, run trials, recommend. Each part is deterministic given its arguments.

The ladder of fidelity: corrected arithmetic ranks suggestions (``predicted``), simulation checks
the best of them (``simulated``), a short live run tries those that could win (``probed``), and the
winner is measured again with a fresh seed (``measured``) and loses its place if it then fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tuner.search.context import OnEvent, TuningContext
from tuner.search.costs import NOTHING_SPENT, Spent
from tuner.search.prepare import prepare
from tuner.search.recommend import recommend
from tuner.search.report import TuningReport
from tuner.search.spec import TuningSpec
from tuner.search.trial_run import run_trial
from tuner.search.trials import TrialRecord


def tune(
    spec: TuningSpec,
    *,
    cost_model: dict[str, Any] | None = None,
    on_event: OnEvent = lambda _: None,
    is_cancelled: Callable[[], bool] = lambda: False,
    trials: Sequence[TrialRecord] = (),
) -> TuningReport:
    """Run a whole tuning job; ``trials`` are those an earlier, interrupted run finished.

    When cancelled, the finished trials are kept and recommended from.

    Raises:
        TunerError, PolicyInputError, EngineError: whatever in the spec is at fault.
    """
    with prepare(spec, cost_model=cost_model, on_event=on_event) as context:
        return search(context, trials, is_cancelled=is_cancelled)


def search(
    context: TuningContext,
    trials: Sequence[TrialRecord] = (),
    *,
    is_cancelled: Callable[[], bool] = lambda: False,
    spent: Spent = NOTHING_SPENT,
) -> TuningReport:
    """Run the trials that are still to come after ``trials``, and recommend; see :func:`tune` and,
    for ``spent``, :func:`recommend`."""
    done = list(trials)
    while len(done) < context.spec.trials and not is_cancelled():
        trial = run_trial(context, len(done), done, is_cancelled=is_cancelled)
        if not trial.is_cut_short:
            done.append(trial)
    return recommend(context, done, is_cancelled=is_cancelled, spent=spent)
