"""Which settings look best: by simulated points, or by the surrogate for those not simulated."""

from __future__ import annotations

from collections.abc import Sequence

from engine.spec.settings import Settings
from tuner.search.context import TuningContext
from tuner.search.design import rank_point
from tuner.search.surrogate import TARGETS, Example, Load, Surrogate, features, fit_surrogate
from tuner.search.trials import TrialRecord
from tuner.workload.slices import head

SURROGATE_REQUESTS = 200


def ranked_by_surrogate(
    context: TuningContext, settings: list[Settings], done: Sequence[TrialRecord]
) -> list[Settings]:
    """``settings`` by what the surrogate predicts, best first; as they are without one."""
    keys = [c.key for c in context.sla.constraints if c.key in TARGETS]
    surrogate = trained_surrogate(context, done, keys=keys or TARGETS, has_intervals=False)
    if surrogate is None:
        return settings
    load = described_load(context)

    def key(candidate: Settings) -> tuple[float, ...]:
        timer = context.simulator.timer(candidate.plan)
        predicted = surrogate.predict(candidate, load, timer)
        return rank_point(predicted, context.sla, context.spec.goal.objective)

    return sorted(settings, key=key)


def trained_surrogate(
    context: TuningContext,
    done: Sequence[TrialRecord],
    *,
    keys: Sequence[str] = TARGETS,
    has_intervals: bool = True,
) -> Surrogate | None:
    """The surrogate over all simulated points and the trials so far; its features are step times,
    so None where those are not known."""
    if context.simulator.is_blind:
        return None
    load = described_load(context)
    examples = list(context.examples)
    for trial in done:
        if (point := trial.point) is not None:
            settings = trial.settings
            row = features(settings, load, context.simulator.timer(settings.plan))
            examples.append(Example(point=point, row=row))
    return fit_surrogate(examples, keys=keys, has_intervals=has_intervals, seed=context.spec.seed)


def shortlist(context: TuningContext) -> list[Settings]:
    """The best simulated settings of each plan, best plans first; plans that can run lead.

    Where nothing can be simulated, each plan with the caps that it would have by default.
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
    return Load.of(head(context.trial_workload, SURROGATE_REQUESTS))
