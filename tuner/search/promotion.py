"""Which settings go on to the next fidelity: those whose interval still reaches what counts.

Before a live run, the simulated interval must reach the SLA and the best run so far: if even its
favourable end is behind the unfavourable end of the best, a run could only confirm that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from engine.spec.measurement import Fidelity
from policies.constraint import Metric
from policies.numbers import short_beside
from policies.objective import GOODPUT, Objective
from policies.points import Estimate, OperatingPoint
from policies.sla import Sla
from policies.verdict import meets_in_run
from tuner.search.context import TuningContext
from tuner.search.trials import TrialRecord, TrialState

# Metrics of which more is better; of every other one less is.
RISING = (
    Metric.ATTAINMENT.value,
    Metric.THROUGHPUT.value,
    Metric.THROUGHPUT_TOTAL.value,
    GOODPUT,
)


def why_not_run(
    context: TuningContext, predicted: OperatingPoint, done: Sequence[TrialRecord]
) -> str | None:
    """Why a live run of ``predicted``, a simulated point, would be in vain; None if its interval
    overlaps."""
    return _hopeless(predicted, context.sla) or _beaten(
        predicted, best_run(context, done), context.sla, context.spec.goal.objective
    )


def best_run(context: TuningContext, done: Sequence[TrialRecord]) -> TrialRecord | None:
    """The best trial that ran live and met the SLA with enough certainty."""
    ran = [
        trial
        for trial in done
        if trial.state is TrialState.COMPLETE
        and trial.is_feasible
        and trial.fidelity in (Fidelity.PROBED, Fidelity.MEASURED)
    ]
    return min(ran, key=lambda trial: _order(context, trial), default=None)


def _order(context: TuningContext, trial: TrialRecord) -> tuple[float, ...]:
    assert trial.point is not None, "a trial that ran to its end has a point"
    return context.spec.goal.objective.order(trial.point, context.sla)


def _hopeless(point: OperatingPoint, sla: Sla) -> str | None:
    """Why even the favourable end of the prediction misses the SLA, or None."""
    for constraint in sla.constraints:
        estimate = point.metrics.get(constraint.key)
        if estimate is None:
            continue
        at_best = estimate.low if constraint.metric.is_latency else estimate.high
        if not constraint.is_met_by(at_best):
            found = short_beside(at_best, constraint.bound)
            return f"simulated {constraint.key} is {found} at best, the SLA asks {constraint}"
    return None


def _beaten(
    point: OperatingPoint, best: TrialRecord | None, sla: Sla, objective: Objective
) -> str | None:
    """Why even the favourable end of the prediction is behind the unfavourable end of ``best``."""
    if best is None or best.point is None or not is_beaten(point, best.point, sla, objective):
        return None
    at_best = _end_of(point, is_favourable=True)
    at_worst = _end_of(best.point, is_favourable=False)
    words = (objective.tell(at_best, sla), objective.tell(at_worst, sla))
    if words[0] == words[1]:  # as many devices: the times decide
        words = (Objective.LATENCY.tell(at_best, sla), Objective.LATENCY.tell(at_worst, sla))
    return f"{words[0]} at best, trial {best.number} ran with {words[1]} at worst"


def is_beaten(point: OperatingPoint, best: OperatingPoint, sla: Sla, objective: Objective) -> bool:
    """Whether even the favourable end of ``point`` is behind the unfavourable end of ``best``,
    which must still meet the SLA."""
    at_worst = _end_of(best, is_favourable=False)
    if objective is Objective.PARETO or not meets_in_run(at_worst, sla):
        return False  # of a trade, every point of the front is wanted
    if not point.metrics:  # nothing is known of it but its devices
        return objective is Objective.DEVICES and point.cost_devices > best.cost_devices
    at_best = _end_of(point, is_favourable=True)
    return objective.order(at_best, sla) > objective.order(at_worst, sla)


def _end_of(point: OperatingPoint, *, is_favourable: bool) -> OperatingPoint:
    """The point at one end of all its intervals."""
    metrics = {
        key: Estimate.exact(estimate.high if (key in RISING) == is_favourable else estimate.low)
        for key, estimate in point.metrics.items()
    }
    return replace(point, metrics=metrics, beliefs={}, runs=None)
