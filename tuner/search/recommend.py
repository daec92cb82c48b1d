"""The answer of a tuning job: which settings, how sure, why, and what stands in the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from engine.spec.measurement import Fidelity
from engine.spec.settings import Settings
from policies.points import OperatingPoint
from policies.select import ChoiceReason, Selection, select
from policies.sla import Sla
from policies.verdict import meets_in_run
from tuner.described.machine import Machine
from tuner.described.steps import MachineSteps, NodeSteps, StepSource, steps_json
from tuner.described.title import Asked, Title
from tuner.search.context import TuningContext
from tuner.search.costs import NOTHING_SPENT, Spent
from tuner.search.finals import Finals
from tuner.search.recommended import make_recommendation
from tuner.search.report import (
    Confirmation,
    Recommendation,
    TuningReport,
    infeasible_json,
    point_json,
)
from tuner.search.steps_seen import steps_seen
from tuner.search.trials import TrialRecord
from tuner.search.unguided import unguided_title

MAX_CONFIRMATIONS = 3


@dataclass(kw_only=True)
class _Pool:
    """Operating points to choose from, at most one per settings: the most trustworthy.

    ``exact`` are those simulated once, without an interval.
    """

    points: dict[Settings, OperatingPoint]
    exact: set[Settings]

    @property
    def live(self) -> list[OperatingPoint]:
        """Points that were run here."""
        fidelities = (Fidelity.PROBED, Fidelity.MEASURED)
        return [point for point in self.points.values() if point.fidelity in fidelities]

    def put(self, settings: Settings, point: OperatingPoint) -> None:
        """Keep the higher fidelity; between equals the later one."""
        order = list(Fidelity)
        old = self.points.get(settings)
        if old is None or order.index(point.fidelity) >= order.index(old.fidelity):
            self.points[settings] = point
            self.exact.discard(settings)

    def demote(self, settings: Settings, point: OperatingPoint | None) -> None:
        """Replace the point by its new measurement; without one, drop it."""
        del self.points[settings]
        if point is not None:
            self.points[settings] = point


def recommend(
    context: TuningContext,
    trials: Sequence[TrialRecord],
    *,
    is_cancelled: Callable[[], bool] = lambda: False,
    spent: Spent = NOTHING_SPENT,
) -> TuningReport:
    """Choose among all trials and all simulated points; measure the winner again.

    A winner that can run here is measured on the whole workload with a fresh seed. One that does
    not show the SLA met with enough certainty (``policies.verdict``) is demoted, and the next one
    is measured. If nothing has enough certainty, the likeliest that met the SLA in a shorter run
    gets the same chance to prove itself before the answer is that nothing will do.

    Then winner, runner-up and trial 0 share fresh draws (``tuner.search.finals``), which may change
    the places of the first two. ``spent``: what an earlier call took that was cut off.
    """
    context.final_costs.clear()
    context.spent_before = spent
    pool = _pool(context, trials)
    finals = Finals(context=context, trials=trials, is_cancelled=is_cancelled)
    confirmations = finals.confirmations
    while True:
        selection = _select(context, pool)
        wanted = selection.best or _unproven(context, selection, confirmations)
        if wanted is None or is_cancelled():
            return _report(context, trials, selection, finals)
        if not context.can_run(wanted.settings.plan):
            missed = finals.compare_simulated(selection)
            if missed is None:
                return _report(context, trials, finals.chosen or selection, finals)
            pool.demote(wanted.settings, missed)
            continue
        if len(confirmations) == MAX_CONFIRMATIONS:
            return _report(context, trials, _select_run(context, pool), finals)
        settings = wanted.settings
        again = finals.confirm(settings)
        if again is None:
            return _report(context, trials, _proven(context, pool, selection, finals), finals)
        if again.is_met and again.point is not None:
            # The reasons for the choice stay; the new measurement replaces the numbers.
            finals.compare_live(_with_best(selection, again.point, context.sla))
            return _report(context, trials, finals.chosen or selection, finals)
        pool.demote(settings, again.point)
        finals.demote(settings, again.reason)
        _learn(context, pool, again)


def _unproven(
    context: TuningContext, selection: Selection, confirmations: Sequence[Confirmation]
) -> OperatingPoint | None:
    """The near miss, if it met the SLA on fewer requests than the whole workload has."""
    near = selection.closest
    if near is None or not meets_in_run(near, context.sla):
        return None
    return None if any(near is c.point for c in confirmations) else near


def _proven(context: TuningContext, pool: _Pool, selection: Selection, finals: Finals) -> Selection:
    """The selection whose winner could not be measured again: where it was only simulated, what met
    the SLA in a run takes its place."""
    best = selection.best
    if best is None or best.fidelity is not Fidelity.SIMULATED:
        return selection
    ran = select(pool.live, context.sla, context.spec.goal.objective)
    if ran.best is None:
        return selection
    why = f"it was only simulated; {ran.best.settings} met the SLA in a run"
    finals.demote(best.settings, why)
    return ran


def _with_best(selection: Selection, best: OperatingPoint, sla: Sla) -> Selection:
    """The selection with its winner, or the near miss that has proven itself, measured again."""
    probability = best.probability(sla)
    if selection.best is not None:
        return replace(selection, best=best, probability=probability)
    rejected = tuple(r for r in selection.rejected if r.point.settings != best.settings)
    return Selection(
        reason=ChoiceReason.ONLY_FEASIBLE,
        best=best,
        fastest=best,
        balanced=best,
        probability=probability,
        rejected=rejected,
    )


def _learn(context: TuningContext, pool: _Pool, again: Confirmation) -> None:
    """If a winner's steps were slower than simulated, slow down all settings of its plan. Else they
    would win next and fail in the same way.
    """
    if again.log_slower <= 0.0:
        return
    plan = again.settings.plan
    context.simulator.slow_down(plan, again.log_slower)
    for settings, point in list(pool.points.items()):
        if settings.plan == plan and point.fidelity is Fidelity.SIMULATED:
            pool.points[settings] = context.simulator.quick_point(settings, context.trial_workload)
            pool.exact.add(settings)


def _select(context: TuningContext, pool: _Pool) -> Selection:
    """Choose among all points. A winner (or near miss, or what a relaxation rests on) of the first
    design is simulated again on the trials' workload with an interval: the design's runs are
    shorter, and exact numbers would look more certain than measured ones.
    """
    while True:
        selection = select(list(pool.points.values()), context.sla, context.spec.goal.objective)
        first = selection.best or selection.closest
        told = [first, *(relaxation.point for relaxation in selection.relaxations)]
        settings = {point.settings for point in told if point is not None} & pool.exact
        if not settings:
            return selection
        for each in settings:
            pool.put(each, context.simulator.point(each, context.trial_workload))


def _select_run(context: TuningContext, pool: _Pool) -> Selection:
    """Choose among points that were run here, after simulation has been wrong too often."""
    context.warnings.append(
        f"{MAX_CONFIRMATIONS} winners missed the SLA, or met it too narrowly, when measured again; "
        "only settings that were run here were considered after that"
    )
    return select(pool.live, context.sla, context.spec.goal.objective)


def _pool(context: TuningContext, trials: Sequence[TrialRecord]) -> _Pool:
    pool = _Pool(points=dict(context.design), exact=set(context.design))
    for trial in trials:
        if (point := trial.point) is not None:
            pool.put(trial.settings, point)
    return pool


def _report(
    context: TuningContext,
    trials: Sequence[TrialRecord],
    selection: Selection,
    finals: Finals,
) -> TuningReport:
    seen = steps_seen(context)
    warnings = [*context.warnings, *finals.warnings]
    warnings += [seen.warning] if seen is not None and seen.warning is not None else []
    recommendation, notes = _recommendation(context, trials, selection, finals)
    warnings += notes
    report = TuningReport(
        recommendation=recommendation,
        trials=tuple(trials),
        pruned=context.space.pruned,
        confirmations=tuple(finals.confirmations),
        alternatives={
            name: point_json(point, context.sla)
            for name, point in (("fastest", selection.fastest), ("balanced", selection.balanced))
            if point is not None
        },
        simulated=tuple(point_json(p, context.sla) for p in context.design.values()),
        infeasible=infeasible_json(selection, context.sla) if selection.best is None else None,
        workload=context.workload.describe(),
        spec=context.spec,
        title=_title(context),
        cost_model=_cost_model_json(context)
        | ({} if seen is None else {"live_steps": seen.to_json()}),
        warnings=tuple(warnings),
        steps=_steps_json(context, selection),
        fresh=finals.fresh,
        demoted=tuple(finals.demoted),
        costs=finals.all_costs,
        budget=finals.budget_json(),
    )
    context.emit("done", report.headline)
    return report


def _recommendation(
    context: TuningContext,
    trials: Sequence[TrialRecord],
    selection: Selection,
    finals: Finals,
) -> tuple[Recommendation | None, list[str]]:
    """The recommendation, if something is best, and what to mind about it."""
    best = selection.best
    if best is None:
        return None, []
    document = next((c.document for c in finals.confirmations if c.point is best), None)
    table = finals.find_capacity_table(best.settings)
    recommendation = make_recommendation(
        context, trials, selection, best, document, None if table is None else table.table
    )
    notes = [*(() if table is None else table.warnings), *best.settings.warnings]
    if best.fidelity is Fidelity.SIMULATED:
        notes.append("the recommended plan was simulated, not run: measure it before use")
    return recommendation, notes


def _steps_json(context: TuningContext, selection: Selection) -> dict[str, Any] | None:
    """Step times of the answer, else of the near miss; None if none are known."""
    if context.simulator.is_blind:
        return None
    point = selection.best or selection.closest
    settings = context.space.baseline if point is None else point.settings
    return steps_json(_step_source(context), settings, context.workload)


def _step_source(context: TuningContext) -> StepSource:
    if (node := context.simulator.node) is not None:
        return NodeSteps(node)
    assert context.cost_model is not None, "a local job has a step model"
    machine = Machine(step_model=context.cost_model, model=context.model, config=context.config)
    return MachineSteps(machine=machine, num_devices=context.spec.num_devices)


def _title(context: TuningContext) -> Title:
    spec, node = context.spec, context.simulator.node
    asked = Asked(model=spec.model_dir, workload=context.workload, sla=context.sla, seed=spec.seed)
    if node is not None:
        return Title.of_node(node, asked)
    if context.cost_model is None:
        return unguided_title(context, asked)
    model = context.cost_model
    return Title.of_machine(model.machine, context.config.dtype, asked, weights=model.weights)


def _cost_model_json(context: TuningContext) -> dict[str, Any]:
    model = context.cost_model
    if model is None:
        if context.hardware is None:
            return {"kind": "none", "reason": "trials were not guided by simulation"}
        device = context.hardware.device
        return {
            "kind": "roofline",
            "hardware": str(context.hardware),
            "calibration": device.calibration,
            "source": device.source,
        }
    return {
        "kind": "step-model",
        "id": model.id,
        "machine": str(model.machine),
        "error": asdict(model.error),
    }
