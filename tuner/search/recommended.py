"""The recommended settings with everything that an operator is told about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.spec.measurement import Fidelity
from engine.spec.settings import Settings
from policies.capacity_table import CapacityTable
from policies.drift import StepSum
from policies.numbers import counted, short
from policies.objective import Objective
from policies.points import OperatingPoint
from policies.report import measurement_json
from policies.select import Selection
from tuner.described.launch import node_commands
from tuner.described.queue_limit import queued_tokens
from tuner.launch.command import PORT, LaunchCommand
from tuner.launch.gearshift import launch_here
from tuner.search.context import TuningContext
from tuner.search.live_capacity import served_here
from tuner.search.ranking import described_load, trained_surrogate
from tuner.search.report import (
    Recommendation,
)
from tuner.search.schedule import build_schedule
from tuner.search.trials import TrialRecord
from tuner.search.unguided import lone_band
from tuner.simulation.step_samples import summed
from tuner.work.counts import model_sizes
from tuner.workload.slices import head

PREDICTED_REQUESTS = 4000


def make_recommendation(
    context: TuningContext,
    trials: Sequence[TrialRecord],
    selection: Selection,
    best: OperatingPoint,
    measured: dict[str, Any] | None,
    table: CapacityTable | None,
) -> Recommendation:
    """``best`` as an operator reads it: with what simulation says of it, ways to serve it, and why
    it is the answer. ``measured`` is the document of its last run, ``table`` what plans carry."""
    settings = best.settings
    assert selection.probability is not None, "a best point has a chance"
    workload = head(context.workload, PREDICTED_REQUESTS)
    predicted = context.simulator.point(settings, workload)
    simulated: dict[str, Any] = {}
    expected: tuple[StepSum, ...] = ()
    if context.simulator.is_blind:
        schedule = lone_band(context, best)
    else:
        run = context.simulator.result(settings, workload)
        simulated = measurement_json(run.measurement, context.sla)["metrics"]
        expected = summed(run.segments)
        schedule = build_schedule(
            context.simulator,
            context.space,
            settings,
            context.workload,
            context.sla,
            carried=None if table is None else table.find(settings.plan),
        )
    paced = _paced_document(context, settings) if context.spec.probe_paced else None
    return Recommendation(
        settings=settings,
        model=model_sizes(context.model),
        fidelity=best.fidelity,
        predicted=simulated,
        predicted_point=predicted,
        surrogate_point=_surrogate_point(context, settings, trials),
        measured=measured,
        point=best,
        paced=paced,
        reason=selection.reason,
        why=selection.why_best,
        explanation=_explain(context, selection, best),
        probability=selection.probability,
        schedule=schedule,
        launch=_launch(context, settings),
        cost=context.spec.goal.cost_json(best),
        capacity_table=table,
        expected_steps=expected,
    )


def _launch(context: TuningContext, settings: Settings) -> tuple[LaunchCommand, ...]:
    """How to serve with the settings: here as the trials ran, or elsewhere on each system."""
    spec, node = context.spec, context.simulator.node
    if context.server_command is not None:
        return (context.server_command.launch(settings, port=PORT),)
    if spec.is_brought:  # only its package knows how it is started
        return ()
    if node is None:
        here = served_here(context)
        return (launch_here(settings, here, max_model_len=spec.max_model_len),)
    workload = context.workload
    longest = int((workload.input_tokens + workload.output_tokens).max())
    return node_commands(
        node,
        settings,
        model=spec.model_dir,
        longest_tokens=longest,
        queued_tokens=queued_tokens(node, settings, workload, context.sla),
    )


def _surrogate_point(
    context: TuningContext, settings: Settings, trials: Sequence[TrialRecord]
) -> OperatingPoint | None:
    """What the surrogate alone would have said of the settings under the trials' workload."""
    surrogate = trained_surrogate(context, trials)
    if surrogate is None:
        return None
    timer = context.simulator.timer(settings.plan)
    return surrogate.predict(settings, described_load(context), timer)


def _explain(context: TuningContext, selection: Selection, best: OperatingPoint) -> str:
    of_them = counted(context.spec.num_devices, "device")
    parts = [f"{best.settings.plan} uses {best.cost_devices} of {of_them}"]
    objective = selection.objective
    if objective is not Objective.DEVICES:
        parts.append(
            f"{objective.role} of those that meet the SLA: {objective.tell(best, context.sla)}"
        )
    for constraint in context.sla.constraints:
        estimate = best.metrics.get(constraint.key)
        if estimate is not None:
            parts.append(
                f"{constraint.key} {short(estimate.value)} "
                f"({short(estimate.low)}..{short(estimate.high)}, {best.fidelity}) "
                f"against {constraint.op}{constraint.bound:g}"
            )
    if selection.rejected:
        cheaper = [r for r in selection.rejected if r.point.cost_devices < best.cost_devices]
        rejected = (cheaper or list(selection.rejected))[0]
        parts.append(f"{rejected.point.settings} was not chosen: {rejected.detail}")
    return "; ".join(parts)


def _paced_document(context: TuningContext, settings: Settings) -> dict[str, Any] | None:
    """The winner once more on the real engine, its steps paced by the wall clock.

    It is still ``simulated``: the front end, the scheduler and the load are real, but not the step
    times.
    """
    if context.hardware is None:
        return None
    from tuner.load.live import LiveEngine

    workload = head(context.workload, context.spec.probe_requests)
    context.emit("paced", f"{settings}: {len(workload)} requests in real time")
    with LiveEngine(context.config, timer_factory=context.simulator.timer) as live:
        measurement = live.measure(
            settings,
            workload,
            seed=context.spec.seed,
            timeout_s=context.spec.timeout_s,
            fidelity=Fidelity.SIMULATED,
        )
    return measurement_json(measurement, context.sla)
