"""Planning for described hardware: every plan judged, the best three chosen, the rest explained.

Each plan is explored on its own (:mod:`tuner.planner.explore`), on several processes at once; the
answer depends on neither their number nor their timing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count

from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.objective import Goal, Objective
from policies.points import OperatingPoint
from policies.select import ChoiceReason, Selection, select
from policies.sla import Sla
from tuner.described.node import Node
from tuner.launch.why_not import why_not
from tuner.planner.certainty import simulate_all, with_runs
from tuner.planner.explore import (
    Explored,
    JudgedOn,
    Tried,
    explore,
)
from tuner.planner.failures import Failure, Why, list_failures
from tuner.planner.fitting import memory_reason
from tuner.planner.pool import Jobs, Workers
from tuner.planner.question import AS_TOLD, Question
from tuner.planner.run_cache import RunCache
from tuner.search.design import rank_point
from tuner.spec.errors import TunerError
from tuner.spec.space import PrunedPlan, build_space
from tuner.workload.judged import check_judged
from tuner.workload.workload import Workload

# After this many rounds of finding winners' intervals, the choice is among points that have one.
# There are more rounds only while none of these is dependable.
MAX_ROUNDS = 6


@dataclass(frozen=True, kw_only=True)
class PlanReport:
    """Everything planning found out.

    ``points`` are all whole simulations, those of winners with intervals. ``selection`` has the
    best three, or what stands in the way. If nothing ran to its end, it is made from runs of single
    requests (``is_from_alone``), which are at least as good as any run under load. ``interrupted``
    says how far planning was when it was stopped; then nothing is chosen.
    """

    question: Question
    num_devices: int
    goal: Goal
    selection: Selection
    points: tuple[OperatingPoint, ...]
    failures: tuple[Failure, ...]
    explored: tuple[Explored, ...]
    is_from_alone: bool = False
    interrupted: str | None = None

    @property
    def feasible(self) -> tuple[OperatingPoint, ...]:
        """Points that meet the SLA: fewest devices first, then fastest."""
        sla = self.question.sla
        met = [p for p in self.points if all(p.is_met(c) for c in sla.per_run)]
        return tuple(sorted(met, key=lambda p: (p.cost_devices, p.latency_score(sla))))

    def count(self, judged_on: JudgedOn) -> int:
        """Settings judged on that much of the workload."""
        return sum(t.judged_on is judged_on for e in self.explored for t in e.tried)


class PlanningStopped(KeyboardInterrupt):
    """Ctrl-C while plans were judged: ``report`` has those that were, and no choice."""

    def __init__(self, report: PlanReport) -> None:
        super().__init__()
        self.report = report


# Called with what is being done, the number of parts done, and the number of parts.
OnPlanning = Callable[[str, int, int], None]


def make_plan(
    node: Node,
    workload: Workload,
    sla: Sla,
    *,
    seed: int = 0,
    num_devices: int | None = None,
    goal: Goal | None = None,
    jobs: Jobs = None,
    on_progress: OnPlanning = lambda *_: None,
) -> PlanReport:
    """Judge every plan on up to ``num_devices`` (all) devices of the node, and find the best by
    ``goal`` (fewest devices).

    Raises:
        TunerError: no plan can run the model there, with the reasons of the first ones; or a bound
            of the SLA says nothing of this workload.
        PlanningStopped: Ctrl-C, when some plan was judged; before that KeyboardInterrupt.
    """
    check_judged(workload, sla)
    goal = goal or Goal()
    with Workers(jobs) as workers:
        question = Question(
            # Timers may hold what cannot go to another process; each makes its own.
            node=replace(node),
            workload=workload,
            sla=sla,
            seed=seed,
            objective=goal.objective,
        )
        return plan_question(
            workers,
            question,
            devices=node.hardware.count if num_devices is None else num_devices,
            goal=goal,
            on_progress=on_progress,
        )


def plan_question(
    workers: Workers,
    question: Question,
    *,
    devices: int,
    goal: Goal,
    on_progress: OnPlanning,
    wanted: Callable[[ParallelPlan], bool] = lambda _: True,
) -> PlanReport:
    """Every ``wanted`` plan on up to ``devices`` devices judged.

    Raises:
        TunerError: none of them can run the model there, or there are fewer devices.
    """
    node, sla = question.node, question.sla
    if devices > node.hardware.count:
        raise TunerError(f"{devices} devices asked for, {node.hardware} has {node.hardware.count}")
    least = devices if goal.uses_all_devices else 1
    memory_failures, fitting = split_plans(node, question.workload, least, devices)
    if not (plans := [plan for plan in fitting if wanted(plan)]):
        raise TunerError(f"none of the plans wanted can run on {least} to {devices} devices")
    explored: list[Explored] = []
    report = partial(PlanReport, question=question, num_devices=devices, goal=goal)
    try:
        _explore_all(workers, question, plans, on_progress, explored)
        points, is_from_alone = _points(workers, question, explored, on_progress)
        asked = _known_alone(question, points) if is_from_alone else question
        if is_from_alone:
            selection = select(points, asked.sla, goal.objective)
        else:
            points, selection = _select(workers, asked, points, goal.objective, on_progress)
    except KeyboardInterrupt as stopped:
        if not explored:
            raise
        raise PlanningStopped(
            report(
                selection=Selection(reason=ChoiceReason.NO_POINTS, objective=goal.objective),
                points=tuple(tried.point for each in explored for tried in each.whole),
                failures=(*memory_failures, *list_failures(explored, sla)),
                explored=tuple(explored),
                interrupted=f"interrupted after {len(explored)} of {len(plans)} plans; nothing is "
                "recommended, as no P is known",
            )
        ) from stopped
    return report(
        selection=selection,
        points=() if is_from_alone else tuple(points),
        failures=(*memory_failures, *list_failures(explored, sla)),
        explored=tuple(explored),
        is_from_alone=is_from_alone,
    )


def split_plans(
    node: Node, workload: Workload, least_devices: int, num_devices: int
) -> tuple[list[Failure], list[ParallelPlan]]:
    """Plans that cannot run at all, and the others, from ``least_devices`` to ``num_devices``."""
    out: dict[str, Why] = {}

    def check(plan: ParallelPlan) -> None:
        if (reason := why_not(node.backend.name, plan)) is not None:
            out[str(plan)] = Why.BACKEND
            raise TunerError(reason)
        if (reason := memory_reason(node, plan, workload)) is not None:
            out[str(plan)] = Why.MEMORY
            raise TunerError(reason)

    space = build_space(
        node.model,
        num_devices,
        check_memory=check,
        max_model_len=node.context_tokens,
        least_devices=least_devices,
    )
    pruned: Sequence[PrunedPlan] = space.pruned
    failures = [
        Failure(plan=p.plan, why=out.get(p.plan, Why.SHAPE), detail="; ".join(p.reasons))
        for p in pruned
    ]
    return failures, list(space.plans)


def _explore_all(
    workers: Workers,
    question: Question,
    plans: list[ParallelPlan],
    on_progress: OnPlanning,
    explored: list[Explored],
) -> None:
    """Judge the plans; ``explored`` gets each as it is judged, and is in order at the end."""
    # Many replicas and stages take longest to simulate, so they come first and no core idles at the
    # end.
    order = sorted(plans, key=lambda plan: (-plan.dp * plan.pp, plan))

    def keep(_: tuple[ParallelPlan, RunCache], found: tuple[Explored, RunCache]) -> None:
        explored.append(found[0])
        on_progress("plans", len(explored), len(order))

    on_progress("plans", 0, len(order))
    tasks = [(plan, question.cache.of(plan)) for plan in order]
    found = workers.map(partial(_explore, question), tasks, keep)
    for _, runs in found:
        question.cache.add_all(runs)
    explored.sort(key=lambda each: (each.plan.world_size, each.plan))


def _explore(question: Question, task: tuple[ParallelPlan, RunCache]) -> tuple[Explored, RunCache]:
    """A judged plan, given its known runs, together with the runs that judging it took."""
    plan, cache = task
    return explore(replace(question, cache=cache), plan), cache


def _points(
    workers: Workers, question: Question, explored: list[Explored], on_progress: OnPlanning
) -> tuple[list[OperatingPoint], bool]:
    """Points of whole simulations, else those of single requests, with True for the latter."""
    whole = [tried.point for e in explored for tried in e.whole]
    if whole:
        return whole, False
    settings = _nearest(explored, question.sla)
    if not settings:
        return [t.point for e in explored for t in e.tried if t.metrics], True
    on_progress("overloaded plans to their end", 0, len(settings))
    flats = simulate_all(workers, question, [(s, AS_TOLD) for s in settings])
    return [
        Tried(settings=s, judged_on=JudgedOn.WHOLE, metrics=flat).point
        for s, flat in zip(settings, flats, strict=True)
    ], False


def _known_alone(question: Question, points: Sequence[OperatingPoint]) -> Question:
    """The question with only the constraints that single requests bound: these ruled plans out."""
    seen = {key for point in points for key in point.metrics}
    known = tuple(c for c in question.sla.per_run if c.key in seen)
    return replace(question, sla=Sla(constraints=known))


def _nearest(explored: list[Explored], sla: Sla) -> list[Settings]:
    """If slices, stopped runs or backlogs ruled out every plan: the settings to run to the end, to
    tell how far they miss. Empty if no plan meets the latencies even of single requests.
    """
    under_load = [t for e in explored for t in e.tried if t.judged_on is not JudgedOn.ALONE]
    if under_load:
        ranked = sorted(under_load, key=lambda t: rank_point(t.point, sla))
    else:
        backlogged = [e.tried[0] for e in explored if not e.is_from_alone]
        ranked = sorted(backlogged, key=lambda t: -t.settings.plan.world_size)
    return list(dict.fromkeys(t.settings for t in ranked))[:MAX_ROUNDS]


def _select(
    workers: Workers,
    question: Question,
    points: list[OperatingPoint],
    objective: Objective,
    on_progress: OnPlanning,
) -> tuple[list[OperatingPoint], Selection]:
    """Choose among points with a known interval, because an exact point would look too certain. A
    near miss gets its interval too, so that the answer can say its P.
    """
    current = {p.settings: p for p in points}
    known: set[Settings] = set()
    for number in count():
        selection = select(list(current.values()), question.sla, objective, explains=False)
        if number >= MAX_ROUNDS:
            told = [current[s] for s in current if s in known]
            sure = select(told, question.sla, objective, explains=False)
            if sure.best is not None:
                return list(current.values()), sure
        winners = [selection.best]
        if not question.only_decides and number < MAX_ROUNDS:
            winners += [selection.fastest, selection.balanced, selection.closest]
        wanted = {p.settings: p for p in winners if p is not None}
        missing = [s for s in wanted if s not in known]
        if not missing:
            found = list(current.values())
            explains = not question.only_decides
            return found, select(found, question.sla, objective, explains=explains)
        on_progress("intervals", number, max(number, MAX_ROUNDS))
        current |= with_runs(workers, question, [current[s] for s in missing])
        known |= set(missing)
    raise AssertionError("points come to an end")
