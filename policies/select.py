"""Chooses among operating points: cheapest, fastest, balanced, or why none will do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from engine.spec.plan import ParallelPlan
from policies.constraint import Constraint, Op
from policies.numbers import short_bound
from policies.objective import Objective, rounded_chance
from policies.points import Estimate, OperatingPoint, is_faster
from policies.sla import Sla
from policies.verdict import (
    MIN_CHANCE,
    is_dependable,
    meets_in_run,
    missed_text,
    too_unlikely,
)

__all__ = [
    "Estimate",
    "OperatingPoint",
    "ChoiceReason",
    "Rejected",
    "PointRejection",
    "Relaxation",
    "Selection",
    "low_threshold_warning",
    "select",
]

# Bounds computed from chances are made this much wider, because rounding would otherwise make them
# miss.
SLACK = 1e-9


class ChoiceReason(StrEnum):
    """Why a selection came out as it did."""

    ONLY_FEASIBLE = "only_feasible"
    FEWEST_DEVICES = "fewest_devices"
    FEWEST_DEVICES_WITH_CERTAINTY = "fewest_devices_with_certainty"
    MOST_LIKELY_OF_THE_CHEAPEST = "most_likely_of_the_cheapest"
    FASTEST_OF_THE_CHEAPEST = "fastest_of_the_cheapest"
    BEST_BY_OBJECTIVE = "best_by_objective"
    SLA_INFEASIBLE = "sla_infeasible"
    SLA_UNLIKELY = "sla_unlikely"
    ONLY_LOW_THRESHOLDS = "only_low_thresholds"
    NO_POINTS = "no_points"


class PointRejection(StrEnum):
    """Why a point was not chosen."""

    VIOLATES_SLA = "violates_sla"
    NOT_OBSERVED = "not_observed"
    LOW_THRESHOLD_WITHOUT_GAIN = "low_threshold_without_gain"
    MORE_DEVICES = "more_devices"
    LESS_LIKELY = "less_likely"
    SLOWER = "slower"
    WORSE_BY_OBJECTIVE = "worse_by_objective"
    WORSE_ON_FRESH_DRAWS = "worse_on_fresh_draws"


_WHY_BEST = {
    ChoiceReason.ONLY_FEASIBLE: "the only settings that meet the SLA",
    ChoiceReason.FEWEST_DEVICES: "no plan meets the SLA with fewer devices",
    ChoiceReason.FEWEST_DEVICES_WITH_CERTAINTY: (
        "fewest devices of those that meet the SLA with enough certainty; smaller ones meet it in "
        "the run but too narrowly for their interval"
    ),
    ChoiceReason.MOST_LIKELY_OF_THE_CHEAPEST: (
        "of the plans with fewest devices, the likeliest to meet the SLA"
    ),
    ChoiceReason.FASTEST_OF_THE_CHEAPEST: "of the plans with fewest devices, the fastest",
}
MISSES = (PointRejection.VIOLATES_SLA, PointRejection.LESS_LIKELY)


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A point that was not chosen, why, and the numbers in words."""

    point: OperatingPoint
    why: PointRejection
    detail: str


@dataclass(frozen=True, kw_only=True)
class Relaxation:
    """How far one constraint, with the others kept, must give way for some point to be dependable.

    ``bound`` None: no relaxation of this constraint alone is enough.
    """

    constraint: Constraint
    bound: float | None
    point: OperatingPoint | None

    @property
    def price(self) -> float | None:
        """Share by which the bound has to give way (0.2 = a fifth)."""
        if self.bound is None:
            return None
        return abs(self.bound - self.constraint.bound) / self.constraint.bound

    @property
    def relaxed(self) -> str | None:
        """The constraint that would hold, to be pasted into an SLA."""
        if self.bound is None:
            return None
        op = self.constraint.op
        return f"{self.constraint.key}{op}{short_bound(self.bound, op)}"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The answer. ``best`` is the recommendation, by ``objective``.

    ``probability`` is P(SLA met) of ``best`` (see ``OperatingPoint.probability``). When nothing
    is dependable, ``best`` is None, ``closest`` the near miss (the likeliest point, of equals the
    one with most headroom), ``binding`` the constraint that it is least likely to meet, and
    ``relaxations`` the price of relaxing each alone. ``SLA_UNLIKELY``: some point met the SLA in
    its run, but none would with ``MIN_CHANCE``.
    """

    reason: ChoiceReason
    objective: Objective = Objective.DEVICES
    best: OperatingPoint | None = None
    fastest: OperatingPoint | None = None
    balanced: OperatingPoint | None = None
    probability: float | None = None
    rejected: tuple[Rejected, ...] = ()
    closest: OperatingPoint | None = None
    binding: Constraint | None = None
    relaxations: tuple[Relaxation, ...] = ()

    @property
    def why_best(self) -> str:
        """The reason for ``best`` in words."""
        return _WHY_BEST.get(self.reason, self.objective.boast)

    def near_misses(self, sla: Sla, limit: int) -> tuple[Rejected, ...]:
        """For each plan that is not dependable under any settings here, the settings that came
        nearest and why they are not; nearest first."""
        misses = [r for r in self.rejected if r.why in MISSES]
        good = {r.point.settings.plan for r in self.rejected if is_dependable(r.point, sla)}
        if self.best is not None:
            good.add(self.best.settings.plan)
        nearest: dict[ParallelPlan, Rejected] = {}
        for miss in sorted(misses, key=lambda r: _nearness(r.point, sla)):
            if miss.point.settings.plan not in good:
                nearest.setdefault(miss.point.settings.plan, miss)
        return tuple(nearest.values())[:limit]


def select(
    points: Sequence[OperatingPoint],
    sla: Sla,
    objective: Objective = Objective.DEVICES,
    *,
    explains: bool = True,
) -> Selection:
    """The best point by ``objective``, the fastest and a balanced one that meet ``sla``, or what
    stands in the way.

    Only dependable points compete (``policies.verdict``). By devices the fewest are best; of equals
    the likelier one wins, then the faster. Balanced = the least product of devices and latency. A
    point whose threshold is below ``max_num_seqs`` competes only if it beats every twin with a
    higher threshold. Without ``explains``, only ``closest`` says what stands in the way: finding
    how far each bound has to give way takes long.
    """
    if not points:
        return Selection(reason=ChoiceReason.NO_POINTS, objective=objective)
    excluded = [r for p in points if (r := _low_threshold_rejection(p, points)) is not None]
    # By identity: two trials of one configuration may be equal points.
    out = {id(r.point) for r in excluded}
    eligible = [p for p in points if id(p) not in out]
    if not eligible:
        return Selection(
            reason=ChoiceReason.ONLY_LOW_THRESHOLDS, objective=objective, rejected=tuple(excluded)
        )
    feasible = [p for p in eligible if meets_in_run(p, sla)]
    dependable = [p for p in feasible if is_dependable(p, sla)]
    if not dependable:
        reason = ChoiceReason.SLA_UNLIKELY if feasible else ChoiceReason.SLA_INFEASIBLE
        if not explains:
            closest = min(eligible, key=lambda p: _nearness(p, sla))
            return Selection(reason=reason, objective=objective, closest=closest)
        return replace(_infeasible(reason, eligible, sla, excluded), objective=objective)
    best = min(dependable, key=lambda p: objective.order(p, sla))
    others = [p for p in points if p is not best and id(p) not in out]
    return Selection(
        reason=_reason(best, feasible, sla, objective),
        objective=objective,
        best=best,
        fastest=min(dependable, key=lambda p: Objective.LATENCY.order(p, sla)),
        balanced=min(dependable, key=lambda p: (_balance(p, sla), p.cost_devices)),
        probability=best.probability(sla),
        rejected=(*excluded, *(_rejection(p, best, sla, objective) for p in others)),
    )


def low_threshold_warning(point: OperatingPoint, points: Sequence[OperatingPoint]) -> str | None:
    """Why a threshold below ``max_num_seqs`` may not be recommended; None when it may.

    It may if the point has at least one twin and beats all of them. A twin has the same plan and
    caps, and a threshold that keeps full decode steps in shift.
    """
    if not point.runs_full_decodes_in_base:
        return None
    settings = point.settings
    numbers = (
        f"threshold {settings.largest_below_base} is below max_num_seqs "
        f"{settings.caps.max_num_seqs}, so full decode steps run in base, not in shift"
    )
    twins = [
        p
        for p in points
        if (p.settings.plan, p.settings.caps) == (settings.plan, settings.caps)
        and not p.runs_full_decodes_in_base
    ]
    if not twins:
        return f"{numbers}, and nothing with a higher threshold was tried to compare it with"
    for twin in twins:
        if not is_faster(point, twin):
            return f"{numbers}, and threshold {twin.settings.threshold_tokens} is as fast or faster"
    return None


def _low_threshold_rejection(
    point: OperatingPoint, points: Sequence[OperatingPoint]
) -> Rejected | None:
    warning = low_threshold_warning(point, points)
    if warning is None:
        return None
    return Rejected(point=point, why=PointRejection.LOW_THRESHOLD_WITHOUT_GAIN, detail=warning)


def _balance(point: OperatingPoint, sla: Sla) -> float:
    return math.log(point.cost_devices) + point.latency_score(sla)


def _nearness(point: OperatingPoint, sla: Sla) -> tuple[float, float]:
    """Smaller is nearer to the SLA."""
    return (-rounded_chance(point, sla), -point.headroom(sla))


def _reason(
    best: OperatingPoint, feasible: Sequence[OperatingPoint], sla: Sla, objective: Objective
) -> ChoiceReason:
    if len(feasible) == 1:
        return ChoiceReason.ONLY_FEASIBLE
    if objective is not Objective.DEVICES:
        return ChoiceReason.BEST_BY_OBJECTIVE
    if any(p.cost_devices < best.cost_devices for p in feasible):
        return ChoiceReason.FEWEST_DEVICES_WITH_CERTAINTY
    rivals = [p for p in feasible if p is not best and p.cost_devices == best.cost_devices]
    if not rivals:
        return ChoiceReason.FEWEST_DEVICES
    if all(rounded_chance(p, sla) < rounded_chance(best, sla) for p in rivals):
        return ChoiceReason.MOST_LIKELY_OF_THE_CHEAPEST
    return ChoiceReason.FASTEST_OF_THE_CHEAPEST


def _rejection(
    point: OperatingPoint,
    best: OperatingPoint,
    sla: Sla,
    objective: Objective = Objective.DEVICES,
) -> Rejected:
    unseen = [c for c in sla.per_run if point.actual(c) is None]
    if unseen:
        why, detail = PointRejection.NOT_OBSERVED, ", ".join(c.key for c in unseen)
    elif missed := [c for c in sla.per_run if not point.is_met(c)]:
        why = PointRejection.VIOLATES_SLA
        detail = ", ".join(missed_text(c, point.actual(c)) for c in missed)
    elif not is_dependable(point, sla):
        why, detail = PointRejection.LESS_LIKELY, too_unlikely(point, sla)
    elif objective is not Objective.DEVICES:
        why = PointRejection.WORSE_BY_OBJECTIVE
        detail = f"{objective.tell(point, sla)} against {objective.tell(best, sla)}"
    elif point.cost_devices > best.cost_devices:
        why, detail = PointRejection.MORE_DEVICES, f"{point.cost_devices} > {best.cost_devices}"
    elif rounded_chance(point, sla) < rounded_chance(best, sla):
        why = PointRejection.LESS_LIKELY
        own, other = (each.probability(sla) for each in (point, best))
        detail = f"P(SLA met) by its runs {own:.2f} < {other:.2f}"
    else:
        why = PointRejection.SLOWER
        ratio = math.exp(point.latency_score(sla) - best.latency_score(sla))
        detail = f"latency x{ratio:.3f} of the chosen one"
    return Rejected(point=point, why=why, detail=detail)


def _infeasible(
    reason: ChoiceReason,
    points: Sequence[OperatingPoint],
    sla: Sla,
    excluded: Sequence[Rejected],
) -> Selection:
    closest = min(points, key=lambda p: _nearness(p, sla))
    return Selection(
        reason=reason,
        closest=closest,
        binding=min(sla.per_run, key=lambda c: (closest.chance(c), closest.margin(c))),
        relaxations=tuple(_relaxation(c, points, sla) for c in sla.per_run),
        rejected=(*excluded, *(_rejection(p, closest, sla) for p in points)),
    )


def _relaxation(constraint: Constraint, points: Sequence[OperatingPoint], sla: Sla) -> Relaxation:
    found = [(b, p) for p in points if (b := needed_bound(constraint, p, sla)) is not None]
    if not found:
        return Relaxation(constraint=constraint, bound=None, point=None)
    pick = min if constraint.op is Op.AT_MOST else max
    bound, point = pick(found, key=lambda pair: pair[0])
    return Relaxation(constraint=constraint, bound=bound, point=point)


def needed_bound(constraint: Constraint, point: OperatingPoint, sla: Sla) -> float | None:
    """The bound with which ``point`` would be dependable, the other constraints kept."""
    others = [c for c in sla.per_run if c is not constraint]
    actual = point.actual(constraint)
    if actual is None or not all(point.is_met(c) for c in others):
        return None
    bound = point.find_bound(constraint, others, MIN_CHANCE)
    if bound is None:
        return None
    if constraint.op is Op.AT_MOST:
        needed = max(bound * (1 + SLACK), actual)
    else:
        needed = min(bound * (1 - SLACK), actual)
    return needed if 0 < needed < math.inf else None
