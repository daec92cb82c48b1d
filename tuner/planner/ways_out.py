"""What would help if no plan meets an SLA; each way is tried by planning again.

A number read off the points at hand is a guess: the plans and caps that were simulated to their end
depend on the SLA, and so does P. Here each guess only tells where to begin. A way out counts when a
whole plan with it, on the same requests in the same draw, finds settings by the verdict rule; and a
way that is a twentieth tighter does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.constraint import Constraint, Metric
from policies.numbers import short
from policies.points import OperatingPoint
from policies.report import flat_metrics
from policies.select import needed_bound
from policies.sla import Sla
from tuner.planner.dependable import dependable_as_planned
from tuner.planner.planner import PlanReport
from tuner.planner.question import Question
from tuner.planner.replan import Replanner
from tuner.planner.tightest import TightestSearch, bound_scale, load_scale
from tuner.spec.errors import TunerError
from tuner.workload.stretch import stretch
from tuner.workload.workload import Workload

# More devices than this are not looked at.
MOST_DEVICES = 32
# One request is served by one replica, and replicas of more devices than a node are hardly quicker.
MOST_DEVICES_ALONE = 8
# In twice the time a latency that is stable grows by less than this; a queue's doubles.
GROWS = 1.4

# This share of what a plan serves per second, when it has more than enough to do, comes in time.
MOSTLY_CARRIED = 0.8
# A load that is carried is seldom closer below the asked one than this.
NEARLY_ALL = 0.95

# The settings of this many plans are asked before all plans are.
NUM_LIKELY = 3


@dataclass(frozen=True, kw_only=True)
class WayOut:
    """One relaxed constraint: ``relaxed`` holds with ``settings``; None: nothing helps, and why."""

    constraint: Constraint
    relaxed: Constraint | None
    settings: Settings | None
    reason: str | None = None
    price_per_point: float | None = None


@dataclass(frozen=True, kw_only=True)
class WaysOut:
    """``is_possible_alone``: whether the SLA is met at some low load at all. ``load_factor`` is the
    highest share of the asked load that is carried, None if there is none; ``num_devices`` is how
    many devices of the kind carry all of it, None if up to ``most_devices`` do not.
    """

    is_possible_alone: bool
    load_factor: float | None
    load_settings: Settings | None
    num_devices: int | None
    devices_settings: Settings | None
    most_devices: int
    relaxations: tuple[WayOut, ...]

    @property
    def is_overload(self) -> bool:
        """Whether the load is what is too much."""
        return self.load_factor is not None


def find_ways_out(
    report: PlanReport, replan: Replanner, on_progress: Callable[[str], None] = lambda _: None
) -> WaysOut:
    """What would help ``report``, in which nothing meets the SLA."""
    load = None
    if not report.is_from_alone:
        on_progress("the highest load that is carried")
        load = _highest_load(report, replan)
    on_progress("devices that carry it")
    most = MOST_DEVICES if load is not None else max(report.num_devices, MOST_DEVICES_ALONE)
    enough = _fewest_devices(report, replan, load, most)
    likely = _likely(report) + ([load[1].settings] if load is not None else [])
    relaxations = []
    for constraint in report.question.sla.per_run:
        on_progress(f"how far {constraint} has to give way")
        relaxations.append(_relax(report, constraint, replan, list(dict.fromkeys(likely))))
    return WaysOut(
        is_possible_alone=load is not None,
        load_factor=None if load is None else load[0],
        load_settings=None if load is None else load[1].settings,
        num_devices=None if enough is None else enough.cost_devices,
        devices_settings=None if enough is None else enough.settings,
        most_devices=most,
        relaxations=tuple(relaxations),
    )


def with_bound(sla: Sla, constraint: Constraint, bound: float) -> Sla:
    """``sla`` with another bound on what ``constraint`` bounds."""
    changed = replace(constraint, bound=bound)
    return Sla(constraints=tuple(changed if c == constraint else c for c in sla.constraints))


def _planned(
    replan: Replanner, workload: Workload, sla: Sla, devices: int, plan: ParallelPlan | None = None
) -> OperatingPoint | None:
    """The best of all plans there, or of ``plan`` alone; None if nothing is dependable."""
    try:
        found = replan(workload, sla, devices, wanted=lambda p: plan is None or p == plan)
    except TunerError:
        return None
    return found.selection.best


def _highest_load(report: PlanReport, replan: Replanner) -> tuple[float, OperatingPoint] | None:
    """The highest factor of the load at which a plan meets the SLA."""
    workload, sla = report.question.workload, report.question.sla

    @cache
    def load_at(factor: float) -> Workload:
        return stretch(workload, factor)

    def by_all(factor: float, plan: ParallelPlan | None) -> OperatingPoint | None:
        return _planned(replan, load_at(factor), sla, report.num_devices, plan)

    def by_one(settings: Settings, factor: float) -> OperatingPoint | None:
        return dependable_as_planned(replan.question(load_at(factor), sla), settings)

    search = TightestSearch(
        scale=load_scale(workload),
        by_all=by_all,
        by_one=by_one,
        likely=_likely(report),
    )
    return search.find(_first_guess(report))


def _first_guess(report: PlanReport) -> float:
    """A share of the load to look at first: a good part of what was served of it per second."""
    load = report.question.workload
    if load.closed is not None or load.span_s == 0:
        return 0.5
    asked = float(load.output_tokens.sum()) / load.span_s
    key = str(Metric.THROUGHPUT)
    served = [point.metrics[key].value for point in report.points if key in point.metrics]
    return min(NEARLY_ALL, MOSTLY_CARRIED * max(served, default=asked / 2) / asked)


def _likely(report: PlanReport) -> list[Settings]:
    """The settings of each plan that came nearest, nearest first; empty if nothing ran under
    load."""
    if report.is_from_alone:
        return []
    sla, nearest = report.question.sla, dict[ParallelPlan, Settings]()
    for point in sorted(report.points, key=lambda point: -point.headroom(sla)):
        if not point.runs_full_decodes_in_base:
            nearest.setdefault(point.settings.plan, point.settings)
    return list(nearest.values())[:NUM_LIKELY]


def _fewest_devices(
    report: PlanReport, replan: Replanner, load: tuple[float, OperatingPoint] | None, most: int
) -> OperatingPoint | None:
    """What meets the SLA on the fewest devices above those of ``report``."""
    question, below = report.question, report.num_devices

    def by_all(count: int) -> OperatingPoint | None:
        # Plans on up to ``below`` devices are known to miss it.
        if count <= below:
            return None
        try:
            found = replan(
                question.workload, question.sla, count, wanted=lambda p: p.world_size > below
            )
        except TunerError:
            return None
        return found.selection.best

    found = None if load is None else _replicated(report, replan, load, most)
    found = found or by_all(most)
    # What takes the fewest devices was chosen only as far as plans were told apart, so ask again.
    while found is not None and (fewer := by_all(found.cost_devices - 1)) is not None:
        found = fewer
    return found


def _replicated(
    report: PlanReport, replan: Replanner, load: tuple[float, OperatingPoint], most: int
) -> OperatingPoint | None:
    """The fewest replicas of what carries ``load``, on more devices than ``report`` has, that carry
    all of it. The share that it carries tells where to begin."""
    workload, sla, (factor, point) = report.question.workload, report.question.sla, load
    plan = point.settings.plan
    size = plan.world_size // plan.dp
    least = report.num_devices // size + 1
    seen: dict[int, OperatingPoint | None] = {}

    def look(replicas: int) -> OperatingPoint | None:
        if replicas not in seen:
            settings = replace(point.settings, plan=replace(plan, dp=replicas))
            seen[replicas] = dependable_as_planned(replan.question(workload, sla), settings)
        return seen[replicas]

    replicas = max(least, min(math.ceil(plan.dp / factor), most // size))
    while replicas * size <= most and look(replicas) is None:
        replicas += 1
    if replicas * size > most:
        return None
    while replicas > least and look(replicas - 1) is not None:
        replicas -= 1
    return _planned(replan, workload, sla, replicas * size, replace(plan, dp=replicas))


def _relax(
    report: PlanReport, constraint: Constraint, replan: Replanner, likely: list[Settings]
) -> WayOut:
    """The smallest relaxation of ``constraint`` with which, the others kept, a plan is found."""
    question, scale = report.question, bound_scale(constraint)

    def by_all(bound: float, plan: ParallelPlan | None) -> OperatingPoint | None:
        sla = with_bound(question.sla, constraint, bound)
        return _planned(replan, question.workload, sla, report.num_devices, plan)

    def by_one(settings: Settings, bound: float) -> OperatingPoint | None:
        sla = with_bound(question.sla, constraint, bound)
        return dependable_as_planned(replan.question(question.workload, sla), settings)

    search = TightestSearch(scale=scale, by_all=by_all, by_one=by_one, likely=list(likely))
    loosest = scale.value(scale.least_share)
    needed = _needed_share(search, question.sla, constraint, loosest)
    found = search.find(min(1.0, needed * 0.999))
    if found is None:
        return _nothing(constraint, "none: with no bound on it the others are still missed")
    bound, point = found
    relaxed = replace(constraint, bound=bound)
    if (growth := _growth(question, relaxed, point)) is not None:
        return _nothing(constraint, growth)
    return WayOut(
        constraint=constraint,
        relaxed=relaxed,
        settings=point.settings,
        price_per_point=_price_per_point(constraint, point),
    )


def _nothing(constraint: Constraint, reason: str) -> WayOut:
    return WayOut(constraint=constraint, relaxed=None, settings=None, reason=reason)


def _needed_share(
    search: TightestSearch, sla: Sla, constraint: Constraint, loosest: float
) -> float:
    """The share of the bound that the likely settings need, read off their runs without a bound;
    where none of them meets the others, a guess."""
    loose = with_bound(sla, constraint, loosest)
    own = next(c for c in loose.per_run if c.key == constraint.key)
    shares = [
        search.scale.share(bound)
        for settings in search.likely
        if (point := search.by_one(settings, loosest)) is not None
        and (bound := needed_bound(own, point, loose)) is not None
    ]
    return max([search.scale.least_share, *shares]) if shares else 0.5


def _growth(question: Question, relaxed: Constraint, point: OperatingPoint) -> str | None:
    """Why no bound holds for long: the same traffic for twice the time makes ``relaxed`` worse and
    worse. None where it is stable."""
    workload = question.workload
    if workload.closed is not None or relaxed.metric not in (Metric.TTFT_MS, Metric.E2E_MS):
        return None
    longer = stretch(workload, 1.0, least=2 * len(workload))
    node = replace(question.node)
    result = node.simulate(point.settings, longer, seed=question.seed)
    now = point.actual(relaxed)
    then = flat_metrics(result.measurement, question.sla).get(relaxed.key)
    if now is None or then is None or then < GROWS * now:
        return None
    return (
        f"none: the queue grows without bound at any bound ({relaxed.key} {short(now)}, and "
        f"{short(then)} after twice the time)"
    )


def _price_per_point(constraint: Constraint, point: OperatingPoint) -> float | None:
    """Milliseconds that the next lower percentile saves, for each percentile point given up."""
    lower = {"p99": ("p95", 4.0), "p95": ("p90", 5.0), "p90": ("p50", 40.0)}
    if constraint.percentile is None or constraint.percentile.value not in lower:
        return None
    name, points = lower[constraint.percentile.value]
    here = point.metrics.get(constraint.key)
    below = point.metrics.get(f"{name}_{constraint.metric}")
    if here is None or below is None:
        return None
    return (here.value - below.value) / points
