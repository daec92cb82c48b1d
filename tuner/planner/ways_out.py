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

from engine.spec.settings import Settings
from policies.constraint import Constraint, Metric, Op
from policies.numbers import short, short_bound
from policies.points import OperatingPoint
from policies.report import flat_metrics
from policies.select import needed_bound
from policies.sla import Sla
from tuner.capacity.search import edge
from tuner.planner.explore import Question
from tuner.planner.planner import PlanReport
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

# Plans once more: under a workload and an SLA, on so many devices.
PlanAgain = Callable[[Workload, Sla, int], PlanReport]


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
    question, devices = report.question, report.num_devices
    workload, sla = question.workload, question.sla
    load: tuple[float | None, Settings | None] = (None, None)
    if not report.is_from_alone:
        on_progress("the highest load that is carried")
        load = _highest_load(question, lambda at: again(at, sla, devices))
    on_progress("devices that carry it")
    most = MOST_DEVICES if load[0] is not None else max(devices, MOST_DEVICES_ALONE)
    count, count_settings = _fewest_devices(
        lambda n: again(workload, sla, n), devices, load[0], most
    )
    relaxations = []
    for constraint in sla.per_run:
        on_progress(f"how far {constraint} has to give way")
        relaxations.append(
            _relax(question, constraint, lambda relaxed: again(workload, relaxed, devices))
        )
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


def _best(report: PlanReport) -> Settings | None:
    best = report.selection.best
    return None if best is None else best.settings


def _highest_load(
    question: Question, again: Callable[[Workload], PlanReport]
) -> tuple[float | None, Settings | None]:
    """The highest factor of the load at which a plan meets the SLA."""
    found: dict[float, Settings | None] = {}

    def passes(factor: float) -> bool:
        factor = round_load(question.workload, factor)
        if factor not in found:
            found[factor] = _best(again(stretch(question.workload, factor)))
        return found[factor] is not None

    least = LEAST_LOAD
    if (closed := question.workload.closed) is not None:
        least = 1 / closed.concurrency
    good = edge(passes, (least, 1.0), start=0.5)
    if good is None:
        return None, None
    good = round_load(question.workload, good)
    return good, found[good]


def round_load(workload: Workload, factor: float) -> float:
    """A factor as it is told: three digits, or whole clients."""
    if workload.closed is None:
        return float(short_bound(factor, Op.AT_LEAST))
    clients = workload.closed.concurrency
    return max(1, math.floor(factor * clients + 1e-9)) / clients


def _fewest_devices(
    again: Callable[[int], PlanReport], devices: int, factor: float | None, most: int
) -> tuple[int | None, Settings | None]:
    """The fewest devices above ``devices`` that meet the SLA. The share that these carry tells
    where to begin."""
    found: dict[int, Settings | None] = {devices: None}

    def passes(count: int) -> bool:
        if count not in found:
            try:
                found[count] = _best(again(count))
            except TunerError:
                found[count] = None
        return found[count] is not None

    bad = devices
    good = most if factor is None else min(most, max(devices + 1, math.ceil(devices / factor)))
    while good > bad and not passes(good):
        bad = good
        good = min(most, math.ceil(1.25 * good))
    if good == bad:
        return None, None
    while good - bad > 1:
        # What the rates tell is mostly right: look next to it first.
        middle = good - 1 if len(found) < 4 else (good + bad) // 2
        if passes(middle):
            good = middle
        else:
            bad = middle
    return good, found[good]


def _relax(
    question: Question, constraint: Constraint, again: Callable[[Sla], PlanReport]
) -> WayOut:
    """The smallest relaxation of ``constraint`` with which, the others kept, a plan is found."""
    is_at_most = constraint.op is Op.AT_MOST
    loosest = constraint.bound * MOST_RELAXED if is_at_most else constraint.bound / MOST_RELAXED
    first = again(with_bound(question.sla, constraint, loosest))
    best = first.selection.best
    if best is None:
        return _nothing(constraint, "none: with no bound on it the others are still missed")
    found: dict[float, OperatingPoint | None] = {loosest: best}

    def bound_of(share: float) -> float:
        bound = constraint.bound / share if is_at_most else constraint.bound * share
        return float(short_bound(bound, constraint.op))

    def passes(share: float) -> bool:
        bound = bound_of(share)
        if bound not in found:
            found[bound] = again(with_bound(question.sla, constraint, bound)).selection.best
        return found[bound] is not None

    guess = _guess(constraint, first, loosest)
    share = edge(passes, (1 / MOST_RELAXED, 1.0), start=guess)
    if share is None:
        return _nothing(constraint, f"none up to {MOST_RELAXED:g} times the bound")
    bound = bound_of(share)
    point = found[bound]
    assert point is not None, "it passed"
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


def _guess(constraint: Constraint, first: PlanReport, loosest: float) -> float:
    """The share of relaxing that the points of a plan without the bound would need."""
    sla = with_bound(first.question.sla, replace(constraint, bound=loosest), loosest)
    own = next(c for c in sla.per_run if c.key == constraint.key)
    bounds = [
        bound
        for point in first.points
        if point.has_interval and (bound := needed_bound(own, point, sla)) is not None
    ]
    if not bounds:
        return 0.5
    is_at_most = constraint.op is Op.AT_MOST
    share = constraint.bound / min(bounds) if is_at_most else max(bounds) / constraint.bound
    return min(1.0, max(1 / MOST_RELAXED, share * 0.999))


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
