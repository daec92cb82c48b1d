"""Suggestions from Optuna, rebuilt from the trial records at every ask.

The records are the only truth: a study is made anew in memory from them and the sampler seeded
from (seed, trial number), so a search that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution

from engine.spec.plan import parse_plan
from engine.spec.settings import Caps, Settings
from policies.points import OperatingPoint
from policies.sla import Sla
from tuner.search.trials import TrialRecord, TrialState
from tuner.spec.space import Space

# Random suggestions before the model of good and bad settings takes over.
NUM_STARTUP_TRIALS = 6
WORST = 10.0
HAS_RUNGS = (False, True)


def suggest(
    space: Space, sla: Sla, trials: Sequence[TrialRecord], *, seed: int, number: int, count: int
) -> list[Settings]:
    """``count`` settings worth trying as trial ``number``, given all earlier ones.

    Minimises (devices, latency against the SLA's bounds) with the SLA as constraints. The same
    arguments give the same answer.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(
        seed=int(np.random.SeedSequence([seed, number]).generate_state(1)[0]),
        n_startup_trials=NUM_STARTUP_TRIALS,
    )
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    known = [t for t in sorted(trials, key=lambda t: t.number) if t.number < number]
    for record in known:
        study.add_trial(_frozen(space, sla, record))
    return [_ask(study, space) for _ in range(count)]


def _ask(study: optuna.Study, space: Space) -> Settings:
    trial = study.ask()
    plan = parse_plan(trial.suggest_categorical("plan", [str(p) for p in space.plans])).plan
    threshold = Settings(plan=plan).threshold_tokens
    if plan.shift:
        threshold = trial.suggest_categorical("threshold_tokens", space.thresholds)
    rungs = space.ladders.get(plan, ())
    if rungs and not trial.suggest_categorical("has_rungs", HAS_RUNGS):
        rungs = ()
    return Settings(
        plan=plan,
        threshold_tokens=threshold,
        rung_thresholds=tuple((mode, most) for mode, most in rungs if most > threshold),
        caps=Caps(
            max_num_seqs=trial.suggest_categorical("max_num_seqs", space.num_seqs),
            max_num_batched_tokens=trial.suggest_categorical(
                "max_num_batched_tokens", space.batched_tokens
            ),
        ),
    )


def _frozen(space: Space, sla: Sla, record: TrialRecord) -> optuna.trial.FrozenTrial:
    params, distributions = _params(space, record.settings)
    point = record.point
    if point is None:
        return optuna.trial.create_trial(
            state=optuna.trial.TrialState.FAIL, params=params, distributions=distributions
        )
    assert record.state is not TrialState.FAILED, "failed trials have no point"
    score = point.latency_score(sla)
    return optuna.trial.create_trial(
        values=[float(point.cost_devices), score if math.isfinite(score) else WORST],
        params=params,
        distributions=distributions,
        constraints=constraint_values(point, sla),
    )


def constraint_values(point: OperatingPoint, sla: Sla) -> dict[str, float]:
    """Each SLA constraint as Optuna wants it: at most 0 where it is met."""
    return {c.key: float(np.clip(-point.margin(c), -WORST, WORST)) for c in sla.constraints}


def _params(
    space: Space, settings: Settings
) -> tuple[dict[str, object], dict[str, BaseDistribution]]:
    """Parameters of ``settings``, with grids widened to hold values of an older grid."""
    caps = settings.caps
    values: dict[str, tuple[object, Sequence[object]]] = {
        "plan": (str(settings.plan), [str(p) for p in space.plans]),
        "max_num_seqs": (caps.max_num_seqs, space.num_seqs),
        "max_num_batched_tokens": (caps.max_num_batched_tokens, space.batched_tokens),
    }
    if settings.plan.shift:
        values["threshold_tokens"] = (settings.threshold_tokens, space.thresholds)
    if settings.plan in space.ladders:
        values["has_rungs"] = (bool(settings.rung_thresholds), HAS_RUNGS)
    distributions: dict[str, BaseDistribution] = {}
    params: dict[str, object] = {}
    for name, (value, grid) in values.items():
        if value in grid:
            params[name] = value
            # Optuna takes any sequence of its choices, and says one of a union of them.
            distributions[name] = CategoricalDistribution(tuple(grid))  # type: ignore[arg-type]
    return params, distributions
