"""Whether single settings are dependable under a load, found as quickly as possible."""

from __future__ import annotations

from dataclasses import replace

from engine.spec.measurement import Fidelity
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.points import OperatingPoint
from policies.sla import Sla
from policies.verdict import is_dependable, meets_in_run
from tuner.capacity.probe import CapacityQuestion, Run, point_under
from tuner.described.document import estimates_of
from tuner.described.node import Node
from tuner.planner.bounds import CertainMissError, LateWatch, backlog_reason
from tuner.planner.certainty import with_runs
from tuner.planner.explore import late_watch
from tuner.planner.pool import Workers
from tuner.planner.question import Question
from tuner.simulation.simulate import OnProgress, no_progress
from tuner.workload.workload import Workload


def dependable_as_planned(question: Question, settings: Settings) -> OperatingPoint | None:
    """The point of the settings if planning ``question``, with all of its draws, would call them
    dependable; else None. A run ends as soon as its miss is certain."""
    load, sla, plan = question.workload, question.sla, settings.plan
    if _is_backlogged(question.node, plan, load, sla):
        return None
    try:
        flat = question.flat(settings, on_progress=late_watch(question, settings))
    except CertainMissError:
        return None
    metrics = estimates_of([flat])
    point = OperatingPoint(settings=settings, fidelity=Fidelity.SIMULATED, metrics=metrics)
    if not meets_in_run(point, sla):
        return None
    with Workers(1) as here:
        point = with_runs(here, question, [point])[settings]
    return point if is_dependable(point, sla) else None


def _is_backlogged(node: Node, plan: ParallelPlan, load: Workload, sla: Sla) -> bool:
    return backlog_reason(node.timer(plan), plan, load, sla, node.computed_tokens(load)) is not None


def dependable_under(asked: CapacityQuestion, node: Node, load: Workload) -> OperatingPoint | None:
    """The point of the settings if they are dependable under ``load``, else None. A run ends as
    soon as its miss is certain."""
    plan = asked.settings.plan
    if _is_backlogged(node, plan, load, asked.sla):
        return None
    most = plan.dp * asked.settings.caps.max_num_seqs

    def run_on(load: Workload, step_scale: float, _: OnProgress) -> Run:
        # Slower steps only tell how certain it is: late requests there are no miss.
        watch = LateWatch(load, asked.sla, max_running=most) if step_scale == 1 else no_progress
        return asked.run_on(load, step_scale, watch)

    try:
        point = point_under(replace(asked, run_on=run_on), load)
    except CertainMissError:
        return None
    return point if is_dependable(point, asked.sla) else None
