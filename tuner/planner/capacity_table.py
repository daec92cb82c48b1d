"""The capacity table of a plan's question: what rate its plans carry within the SLA.

Plans of one replica come first, each under its caps, in one draw of the arrivals. N replicas are
looked at only if N times the rate of one comes near the best rate of as many devices. The best of
each number of devices, and what comes near it, gets the whole search: several draws, a fit, an
interval.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

from engine.spec.measurement import Fidelity
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.capacity_table import CapacityTable, CarriedRate
from policies.points import OperatingPoint
from tuner.capacity.probe import CapacityQuestion, load_at
from tuner.capacity.search import limits_of
from tuner.capacity.table import (
    Standing,
    check_has_table,
    climb,
    entry_of,
    near,
    table_of,
    worth_fitting,
    worth_looking,
)
from tuner.described.energy import energy_of
from tuner.described.node import Node
from tuner.planner.dependable import dependable_under
from tuner.planner.fitting import fitting_settings
from tuner.planner.planner import OnPlanning, PlanReport, split_plans
from tuner.planner.pool import Jobs, Workers
from tuner.planner.question import Question

Task = TypeVar("Task")
Answer = TypeVar("Answer")


def find_table(
    report: PlanReport, *, jobs: Jobs = None, on_progress: OnPlanning = lambda *_: None
) -> CapacityTable:
    """The capacity table of ``report``'s question within its devices, those that it left idle and
    plans that miss the SLA at the asked load included.

    Raises:
        TunerError: the workload has no rate.
    """
    question = replace(report.question, node=replace(report.question.node))
    check_has_table(question.workload)
    _, plans = split_plans(question.node, question.workload, 1, report.num_devices)
    hopeless = {e.plan for e in report.explored if e.is_from_alone}
    plans = [plan for plan in plans if plan not in hopeless]
    best = report.selection.best
    beside = None if best is None else best.settings.plan
    with Workers(jobs) as workers:
        run = partial(_run, workers, on_progress)
        lone = [plan for plan in plans if plan.dp == 1]
        known = _found(run("one replica", partial(_climb, question), lone))
        guesses = worth_looking(known, _guesses(plans, known))
        known += _found(run("replicas", partial(_near, question), guesses))
        worth = worth_fitting(known, beside=beside)
        entries = run("intervals", partial(_entry, question), worth)
    return table_of(question.workload, question.sla, entries, beside=beside)


def _run(
    workers: Workers,
    on_progress: OnPlanning,
    stage: str,
    answer: Callable[[Task], Answer],
    tasks: list[Task],
) -> list[Answer]:
    """The answers, with progress told under the stage's name."""
    done = 0

    def count(*_: object) -> None:
        nonlocal done
        done += 1
        on_progress(f"capacity, {stage}", done, len(tasks))

    return workers.map(answer, tasks, count)


def _found(standings: list[Standing | None]) -> list[Standing]:
    return [standing for standing in standings if standing is not None]


def _guesses(plans: list[ParallelPlan], known: list[Standing]) -> list[Standing]:
    """N replicas carry about N times what one does under its caps."""
    of_one = {standing.settings.plan: standing for standing in known}
    return [
        Standing(
            settings=replace(one.settings, plan=plan),
            factor=plan.dp * one.factor,
        )
        for plan in plans
        if plan.dp > 1 and (one := of_one.get(replace(plan, dp=1))) is not None
    ]


def _climb(question: Question, plan: ParallelPlan) -> Standing | None:
    node = replace(question.node)
    options = [
        settings
        for settings in fitting_settings(question, node, plan)
        if not _runs_decodes_in_base(settings)
    ]
    return climb(options, _passes_of(question, node), limits_of(question.workload))


def _near(question: Question, guess: Standing) -> Standing | None:
    node = replace(question.node)
    return near(guess, _passes_of(question, node), limits_of(question.workload))


def _entry(question: Question, standing: Standing) -> CarriedRate | None:
    node = replace(question.node)
    asked = _asked(question, node, standing.settings)
    return entry_of(asked, standing, partial(_joules, asked, node))


def _runs_decodes_in_base(settings: Settings) -> bool:
    """Such settings are recommended only if all twins are slower, which one load cannot tell."""
    point = OperatingPoint(settings=settings, fidelity=Fidelity.SIMULATED, metrics={})
    return point.runs_full_decodes_in_base


def _passes_of(question: Question, node: Node) -> Callable[[Settings, float], bool]:
    """Whether settings are dependable at a factor of the load."""

    def passes(settings: Settings, factor: float) -> bool:
        asked = _asked(question, node, settings)
        return dependable_under(asked, node, load_at(asked, factor, 0)) is not None

    return passes


def _asked(question: Question, node: Node, settings: Settings) -> CapacityQuestion:
    return CapacityQuestion.of_node(
        node, settings, question.workload, question.sla, seed=question.seed
    )


def _joules(asked: CapacityQuestion, node: Node, factor: float) -> float | None:
    """Estimated joules of all devices of the plan for each request that ended."""
    if not node.has_device:
        return None
    result = node.simulate(asked.settings, load_at(asked, factor, 0))
    count = len(result.measurement.completed)
    own = replace(node, hardware=replace(node.hardware, count=asked.settings.plan.world_size))
    return energy_of(own, result).joules / count if count else None
