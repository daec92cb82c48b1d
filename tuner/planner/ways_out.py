"""What would help where no plan meets an SLA, each way tried by planning again.

A number read off the points at hand is a guess: the plans and caps that were simulated to their end
depend on the SLA, and so does P. Here each guess only tells where to begin. A way out counts when a
whole plan with it, on the same requests in the same draw, finds settings by the verdict rule; and a
way that is a twentieth tighter does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.constraint import Constraint, Metric, Op
from policies.numbers import short, short_bound
from policies.points import OperatingPoint
from policies.report import flat_metrics
from policies.select import needed_bound
from policies.sla import Sla
from tuner.capacity.search import TIGHTER
from tuner.planner.explore import Question
from tuner.planner.firm import Firm, Scale
from tuner.planner.planner import PlanAgain, PlanReport
from tuner.spec.errors import TunerError
from tuner.workload.stretch import stretch
from tuner.workload.workload import Workload

# A bound is relaxed at most to this many times itself, a load lowered to this share of itself.
MOST_RELAXED = 1000.0
LEAST_LOAD = 1 / 256
# More devices than that are not looked at.
MOST_DEVICES = 32
# One request is served by one replica; those of more devices than a node are hardly quicker.
MOST_DEVICES_ALONE = 8
# In twice the time a latency that is stable grows by less than this; a queue's doubles.
GROWS = 1.4

# Plans that are asked first, before all are.
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
    highest share of the asked load that is carried, None where there is none; ``num_devices`` how
    many devices of the kind carry all of it, None where up to ``most_devices`` do not.
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
    report: PlanReport, again: PlanAgain, on_progress: Callable[[str], None] = lambda _: None
) -> WaysOut:
    """What would help ``report``, in which nothing meets the SLA."""
    load: tuple[float | None, Settings | None] = (None, None)
    if not report.is_from_alone:
        on_progress("the highest load that is carried")
        load = _highest_load(report, again)
    on_progress("devices that carry it")
    most = MOST_DEVICES if load[0] is not None else max(report.num_devices, MOST_DEVICES_ALONE)
    count, count_settings = _fewest_devices(report, again, load[0], most)
    relaxations = []
    for constraint in report.question.sla.per_run:
        on_progress(f"how far {constraint} has to give way")
        relaxations.append(_relax(report, constraint, again))
    return WaysOut(
        is_possible_alone=load[0] is not None,
        load_factor=load[0],
        load_settings=load[1],
        num_devices=count,
        devices_settings=count_settings,
        most_devices=most,
        relaxations=tuple(relaxations),
    )


def with_bound(sla: Sla, constraint: Constraint, bound: float) -> Sla:
    """``sla`` with another bound on what ``constraint`` bounds."""
    changed = replace(constraint, bound=bound)
    return Sla(constraints=tuple(changed if c == constraint else c for c in sla.constraints))


def _best(report: PlanReport) -> OperatingPoint | None:
    return report.selection.best


def _wanted(plans: frozenset[ParallelPlan] | None) -> Callable[[ParallelPlan], bool]:
    return lambda plan: plans is None or plan in plans


def _highest_load(report: PlanReport, again: PlanAgain) -> tuple[float | None, Settings | None]:
    """The highest factor of the load at which a plan meets the SLA."""
    question, devices = report.question, report.num_devices

    def look(factor: float, plans: frozenset[ParallelPlan] | None) -> OperatingPoint | None:
        load = stretch(question.workload, factor)
        return _best(again(load, question.sla, devices, wanted=_wanted(plans)))

    firm = Firm(scale=load_scale(question.workload), look=look, likely=_likely(report))
    found = firm.find(0.5)
    return (None, None) if found is None else (found[0], found[1].settings)


def load_scale(workload: Workload) -> Scale:
    """Factors of a load, told in three digits, or in whole clients."""
    if (closed := workload.closed) is None:
        return Scale(
            least_share=LEAST_LOAD,
            share=lambda factor: factor,
            value=lambda share: share,
            told=lambda factor: float(short_bound(factor, Op.AT_LEAST)),
            tighter=lambda factor: factor * TIGHTER,
        )
    clients = closed.concurrency
    return Scale(
        least_share=1 / clients,
        share=lambda factor: factor,
        value=lambda share: share,
        told=lambda factor: max(1, math.floor(factor * clients + 1e-9)) / clients,
        tighter=lambda factor: max(factor * TIGHTER, factor + 1 / clients),
    )


def _likely(report: PlanReport) -> set[ParallelPlan]:
    """The plans that came nearest; empty where nothing ran under load, so that all may win."""
    if report.is_from_alone:
        return set()
    sla = report.question.sla
    ranked = sorted(report.points, key=lambda point: -point.headroom(sla))
    return set(list(dict.fromkeys(point.settings.plan for point in ranked))[:NUM_LIKELY])


def _fewest_devices(
    report: PlanReport, again: PlanAgain, factor: float | None, most: int
) -> tuple[int | None, Settings | None]:
    """The fewest devices above those of ``report`` that meet the SLA. The share of the load that
    these carry tells where to begin."""
    question, below = report.question, report.num_devices

    def look(count: int) -> OperatingPoint | None:
        # Plans on up to ``below`` devices are known to miss it.
        try:
            found = again(
                question.workload,
                question.sla,
                count,
                wanted=lambda plan: below < plan.world_size,
            )
        except TunerError:
            return None
        return _best(found)

    count = most if factor is None else min(most, max(below + 1, math.ceil(below / factor)))
    best: OperatingPoint | None = None
    while count > below:
        if (point := look(count)) is not None:
            # It takes the fewest devices, as far as plans were told apart; fewer are asked again.
            best, count = point, point.cost_devices - 1
        elif best is not None:
            break
        else:
            below, count = count, min(most, math.ceil(1.25 * count))
    return (None, None) if best is None else (best.cost_devices, best.settings)


def _relax(report: PlanReport, constraint: Constraint, again: PlanAgain) -> WayOut:
    """The smallest relaxation of ``constraint`` with which, the others kept, a plan is found."""
    question, devices = report.question, report.num_devices
    scale = bound_scale(constraint)
    loosest = scale.value(scale.least_share)
    first = again(question.workload, with_bound(question.sla, constraint, loosest), devices)
    if _best(first) is None:
        return _nothing(constraint, "none: with no bound on it the others are still missed")

    def look(bound: float, plans: frozenset[ParallelPlan] | None) -> OperatingPoint | None:
        sla = with_bound(question.sla, constraint, bound)
        return _best(again(question.workload, sla, devices, wanted=_wanted(plans)))

    needed = _needed_bounds(first, constraint, loosest)
    likely = list(dict.fromkeys(plan for _, plan in needed))[:NUM_LIKELY]
    start = scale.share(needed[0][0]) * 0.999 if needed else 0.5
    found = Firm(scale=scale, look=look, likely=set(likely)).find(min(1.0, start))
    if found is None:
        return _nothing(constraint, f"none up to {MOST_RELAXED:g} times the bound")
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


def bound_scale(constraint: Constraint) -> Scale:
    """Bounds of a constraint, told in three digits."""
    asked, op = constraint.bound, constraint.op
    if op is Op.AT_MOST:
        return Scale(
            least_share=1 / MOST_RELAXED,
            share=lambda bound: asked / bound,
            value=lambda share: asked / share,
            told=lambda bound: float(short_bound(bound, op)),
            tighter=lambda bound: bound / TIGHTER,
        )
    return Scale(
        least_share=1 / MOST_RELAXED,
        share=lambda bound: bound / asked,
        value=lambda share: asked * share,
        told=lambda bound: float(short_bound(bound, op)),
        tighter=lambda bound: bound * TIGHTER,
    )


def _nothing(constraint: Constraint, reason: str) -> WayOut:
    return WayOut(constraint=constraint, relaxed=None, settings=None, reason=reason)


def _needed_bounds(
    first: PlanReport, constraint: Constraint, loosest: float
) -> list[tuple[float, ParallelPlan]]:
    """The bounds that the points of a plan without the bound need, tightest first. Those of points
    without an interval are a little too tight."""
    sla = with_bound(first.question.sla, replace(constraint, bound=loosest), loosest)
    own = next(c for c in sla.per_run if c.key == constraint.key)
    found = [
        (bound, point.settings.plan)
        for point in first.points
        if (bound := needed_bound(own, point, sla)) is not None
    ]
    return sorted(found, key=lambda pair: pair[0], reverse=own.op is Op.AT_LEAST)


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
