"""One trial: what it tries is simulated, then run live unless something speaks against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from engine.spec.measurement import Fidelity, Measurement
from engine.spec.settings import Settings
from policies.points import OperatingPoint, estimates_to_json
from policies.report import measurement_json
from policies.verdict import is_dependable, verdict
from tuner.search.context import TuningContext
from tuner.search.costs import Level
from tuner.search.evidence import measured_point
from tuner.search.live_run import run_live
from tuner.search.promotion import why_not_run
from tuner.search.proposals import propose
from tuner.search.remaining_budget import RemainingBudget
from tuner.search.trials import TrialRecord, TrialState
from tuner.spec.errors import TunerError


def run_trial(
    context: TuningContext,
    number: int,
    done: Sequence[TrialRecord],
    *,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> TrialRecord:
    """Trial ``number``, given the earlier ones; trial 0 is the baseline.

    What it tries follows from (spec, number, done) alone. A setting that the engine cannot run
    is a failed trial, not an error. One that was cancelled half-way (``is_cut_short``) tells of
    nothing: it is neither kept nor announced.
    """
    with context.meter.timing(Level.PREDICTED):
        settings = propose(context, number, done)
    predicted, cannot = _predicted(context, settings)
    record = _Recorder(context, number, settings, predicted)
    budget = RemainingBudget(context=context, trials=done)
    why_not = None if number == 0 else why_not_run(context, predicted, done)
    if cannot is not None:
        trial = record.failed(cannot)
    elif why_not is not None:
        trial = record.simulated(TrialState.PRUNED, f"not run: {why_not}")
    elif not context.can_run(settings.plan):
        told = [verdict(predicted, context.sla)] if predicted.metrics else []
        why = _why_simulated(context, settings)
        trial = record.simulated(TrialState.COMPLETE, "; ".join([*told, why]))
    elif (dear := budget.why_not_run(settings, context.trial_workload)) is not None:
        trial = record.simulated(TrialState.PRUNED, dear)
    else:
        trial = _run_live(context, record, settings, number, budget, is_cancelled)
    if not trial.is_cut_short:
        context.emit("trial", _line(trial), **trial.to_json())
    return trial


class _Recorder:
    """Fills in the parts of a record that every ending shares."""

    def __init__(
        self,
        context: TuningContext,
        number: int,
        settings: Settings,
        predicted: OperatingPoint,
    ) -> None:
        self._context = context
        self._number = number
        self._settings = settings
        self._predicted = predicted

    def simulated(self, state: TrialState, reason: str) -> TrialRecord:
        return self._record(state, self._predicted, reason, None)

    def measured(self, measurement: Measurement, stopped: str | None) -> TrialRecord:
        """``stopped``: why it was stopped as hopeless; None: it ran to its end."""
        context = self._context
        point = measured_point(
            self._settings,
            measurement,
            context.sla,
            simulated=self._predicted,
            seed=context.spec.seed,
        )
        document = measurement_json(measurement, context.sla) | context.told_by_server()
        if stopped is not None:
            return self._record(TrialState.PRUNED, point, stopped, document)
        return self._record(TrialState.COMPLETE, point, verdict(point, context.sla), document)

    def failed(self, reason: str) -> TrialRecord:
        return self._record(TrialState.FAILED, None, reason, None)

    def _record(
        self,
        state: TrialState,
        point: OperatingPoint | None,
        reason: str,
        document: dict[str, Any] | None,
    ) -> TrialRecord:
        sla = self._context.sla
        costs = self._context.meter.taken()
        return TrialRecord(
            number=self._number,
            settings=self._settings,
            fidelity=point.fidelity if point else Fidelity.SIMULATED,
            state=state,
            metrics=estimates_to_json(point.metrics) if point else {},
            is_feasible=point is not None and is_dependable(point, sla),
            sla_probability=point.probability(sla) if point else None,
            beliefs=estimates_to_json(point.beliefs) if point else {},
            reason=reason,
            seconds=sum(cost.seconds for cost in costs if cost.level is not Level.PROFILED),
            predicted=estimates_to_json(self._predicted.metrics),
            document=document,
            costs=costs,
        )


def _predicted(context: TuningContext, settings: Settings) -> tuple[OperatingPoint, str | None]:
    """What simulation says, or nothing and why it cannot be: the usual caps, which trial 0 has, may
    leave no room for KV."""
    try:
        return _simulated(context, settings), None
    except TunerError as error:
        nothing = OperatingPoint(settings=settings, fidelity=Fidelity.SIMULATED, metrics={})
        return nothing, str(error)


def _simulated(context: TuningContext, settings: Settings) -> OperatingPoint:
    if context.simulator.is_blind:
        return context.simulator.point(settings, context.trial_workload)
    with context.meter.timing(Level.SIMULATED):
        return context.simulator.point(settings, context.trial_workload)


def _run_live(
    context: TuningContext,
    record: _Recorder,
    settings: Settings,
    number: int,
    budget: RemainingBudget,
    is_cancelled: Callable[[], bool],
) -> TrialRecord:
    is_whole = len(context.trial_workload) == len(context.workload)
    run = run_live(
        context,
        settings,
        context.trial_workload,
        seed=context.spec.seed + 1000 + number,
        fidelity=Fidelity.MEASURED if is_whole else Fidelity.PROBED,
        allowed_s=budget.allowed_s(settings),
        is_judged=number > 0,  # what the others are compared with is wanted as it is
        is_cancelled=is_cancelled,
    )
    context.meter.costs.append(run.cost)
    if run.measurement is not None:
        return record.measured(run.measurement, run.reason)
    assert run.reason is not None, "what told nothing has a reason"
    if run.is_out_of_budget:
        return record.simulated(TrialState.PRUNED, run.reason)
    return record.failed(run.reason)


def _why_simulated(context: TuningContext, settings: Settings) -> str:
    if context.hardware is not None and not context.spec.is_served:
        return f"simulated on {context.hardware}"
    if context.max_live_ranks == 0:
        return "simulated: live trials are off"
    return (
        f"simulated: {settings.plan.world_size} ranks on {context.max_live_ranks} cores or devices "
        "would be timed waiting for each other"
    )


def _line(trial: TrialRecord) -> str:
    chance = "" if trial.sla_probability is None else f", P(met) {trial.sla_probability:.2f}"
    head = f"trial {trial.number}: {trial.settings} {trial.fidelity} {trial.state}{chance}"
    return f"{head}: {trial.reason}"
