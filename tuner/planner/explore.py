"""What one plan can do under a workload: bounds first, then a slice, then whole simulations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np

from engine.spec.measurement import Fidelity
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.constraint import Metric
from policies.late import late_limits
from policies.objective import Objective
from policies.points import Estimate, OperatingPoint
from policies.sla import Sla
from tuner.described.node import Node
from tuner.planner.alone import alone_metrics, alone_reason, bounded_alone
from tuner.planner.bounds import (
    CertainMissError,
    LateWatch,
    backlog_reason,
    certain_miss,
)
from tuner.planner.fitting import fitting_settings
from tuner.planner.question import Question
from tuner.planner.run_cache import RunKey
from tuner.search.design import rank_point
from tuner.workload.slices import head
from tuner.workload.workload import Workload

SLICE_REQUESTS = 300
# Shorter workloads are simulated whole at every setting: a slice would save nothing.
MIN_REQUESTS_TO_SLICE = 2 * SLICE_REQUESTS
# No other caps can mend a TTFT or E2E that is this many times its bound.
HOPELESS_RATIO = 3.0
# The next best caps get a whole run if the best missed by less than this share of a bound.
MAX_WHOLE_RUNS = 2
FAR_SHARE = 0.25


class JudgedOn(StrEnum):
    """How much of the workload the verdict on some settings is based on."""

    BOUND = "bound"
    ALONE = "alone"
    SLICE = "slice"
    PART = "part"
    WHOLE = "whole"

    @property
    def meaning(self) -> str:
        """For people who see the word in a table."""
        return _MEANINGS[self]


_MEANINGS = {
    JudgedOn.BOUND: "what no run can beat",
    JudgedOn.ALONE: "one request at a time",
    JudgedOn.SLICE: "the workload's busiest stretch",
    JudgedOn.PART: "a run stopped once its miss was certain",
    JudgedOn.WHOLE: "the whole workload",
}


@dataclass(frozen=True, kw_only=True)
class Tried:
    """Settings and their result. ``metrics`` is empty if no simulation came to its end; ``note``
    says why. ``cause`` is the metric of the bound that is certainly missed.
    """

    settings: Settings
    judged_on: JudgedOn
    metrics: Mapping[str, float] = field(default_factory=dict)
    note: str | None = None
    cause: Metric | None = None

    @property
    def point(self) -> OperatingPoint:
        """The numbers as exact estimates."""
        exact = {key: Estimate.exact(value) for key, value in self.metrics.items()}
        return OperatingPoint(settings=self.settings, fidelity=Fidelity.SIMULATED, metrics=exact)


@dataclass(frozen=True, kw_only=True)
class Explored:
    """Everything tried on one plan. ``reason`` is set where a bound ruled the plan out, from
    single requests (``is_from_alone``) or the arrivals."""

    plan: ParallelPlan
    tried: tuple[Tried, ...]
    reason: str | None = None
    is_from_alone: bool = False

    @property
    def whole(self) -> tuple[Tried, ...]:
        """What was simulated on the whole workload to the end."""
        return tuple(t for t in self.tried if t.judged_on is JudgedOn.WHOLE)


def explore(question: Question, plan: ParallelPlan) -> Explored:
    """Judge ``plan``: rule it out by a bound, or simulate its settings.

    The settings are compared on the workload's busiest requests. The best of those that can still
    meet the SLA runs on the whole workload.
    """
    node = question.node
    options = fitting_settings(question, node, plan)
    lone = _alone(question, node, options)
    if (reason := alone_reason(dict(lone.metrics), question.sla)) is not None:
        return Explored(plan=plan, tried=(lone,), reason=reason, is_from_alone=True)
    load, timer = question.workload, node.timer(plan)
    reason = backlog_reason(timer, plan, load, question.sla, node.computed_tokens(load))
    if reason is not None:
        return Explored(plan=plan, tried=(lone,), reason=reason)
    if len(question.workload) < MIN_REQUESTS_TO_SLICE:
        return Explored(plan=plan, tried=(lone, *_compare_whole(question, options)))
    sliced = _compare_on_slice(question, options)
    open_ones = [t for t in sliced if t.note is None]
    whole: list[Tried] = []
    # The answer always names the fastest plan, too. And as all settings of one plan have as many
    # devices, the fastest of them are also best by devices.
    goals = [question.objective] if question.objective is not Objective.DEVICES else []
    for objective in dict.fromkeys((*goals, Objective.LATENCY)):
        whole += _whole_runs(question, open_ones, objective, seen={t.settings for t in whole})
    seen = {t.settings for t in whole}
    return Explored(plan=plan, tried=(lone, *whole, *(t for t in sliced if t.settings not in seen)))


def late_watch(question: Question, settings: Settings) -> LateWatch:
    """What stops a run of ``settings`` as soon as it must miss the SLA."""
    max_running = settings.plan.dp * settings.caps.max_num_seqs
    return LateWatch(question.workload, question.sla, max_running=max_running)


def busiest(workload: Workload, num_requests: int) -> Workload:
    """The ``num_requests`` requests in a row that arrive in the shortest time."""
    if workload.closed is not None or len(workload) <= num_requests:
        return head(workload, num_requests)
    times = workload.arrival_s
    # Seconds from each request to the last one of the run that it begins.
    spans = times[num_requests - 1 :] - times[: len(times) - num_requests + 1]
    first = int(np.argmin(spans))
    return replace(workload, arrivals=workload.arrivals[first : first + num_requests])


def _alone(question: Question, node: Node, options: list[Settings]) -> Tried:
    """The bounds that single requests give for all of the options."""
    key = options[0].plan, tuple(c.key for c in bounded_alone(question.sla))
    found = question.cache.alone.get(key)
    if found is None:
        found = alone_metrics(node, options, question.workload, question.sla, seed=question.seed)
        question.cache.alone[key] = found
    return Tried(settings=options[0], judged_on=JudgedOn.ALONE, metrics=found)


def _whole(question: Question, settings: Settings) -> Tried:
    try:
        flat = question.flat(settings, on_progress=late_watch(question, settings))
    except CertainMissError as miss:
        cause = miss.constraint.metric
        return Tried(settings=settings, judged_on=JudgedOn.PART, note=str(miss), cause=cause)
    return Tried(settings=settings, judged_on=JudgedOn.WHOLE, metrics=flat)


def _compare_whole(question: Question, options: list[Settings]) -> list[Tried]:
    """As :func:`_compare_on_slice`, on the whole of a short workload."""
    first = _whole(question, options[0])
    if _is_hopeless(first, question.sla):
        return [first]
    return [first, *(_whole(question, settings) for settings in options[1:])]


def _compare_on_slice(question: Question, options: list[Settings]) -> list[Tried]:
    """Try the backend's own caps, then others, unless the former show that no caps help."""
    piece = busiest(question.workload, _slice_requests(question))
    first = _on_slice(question, piece, options[0])
    if _is_hopeless(first, question.sla):
        return [first]
    return [first, *(_on_slice(question, piece, settings) for settings in options[1:])]


def _slice_requests(question: Question) -> int:
    """Requests of a slice: enough that the slice alone can show that too many are late."""
    limits = late_limits(question.sla, len(question.workload))
    most = max((limit.num_allowed for limit in limits), default=0)
    return max(SLICE_REQUESTS, min(3 * most, len(question.workload) // 5))


def _on_slice(question: Question, piece: Workload, settings: Settings) -> Tried:
    key = RunKey(part=len(piece))
    facts = question.facts(settings, key, piece)
    miss = certain_miss(
        lambda limit: facts.num_over(limit.constraint),
        question.sla,
        num_seen=len(piece),
        num_requests=len(question.workload),
    )
    if question.node.finds_beginnings(question.workload):
        miss = None  # what the requests before these left in the prefix cache may mend it
    return Tried(
        settings=settings,
        judged_on=JudgedOn.SLICE,
        metrics=question.flat(settings, key, piece),
        note=miss.reason if miss else None,
        cause=miss.constraint.metric if miss else None,
    )


def _whole_runs(
    question: Question,
    sliced: list[Tried],
    objective: Objective,
    *,
    seen: set[Settings],
) -> list[Tried]:
    """Run the best of the slice by ``objective``, and its twin if its threshold is low; if it
    fails, the next. Nothing if the best is among those ``seen`` to the end.
    """
    sla = question.sla
    ranked = sorted(sliced, key=lambda t: rank_point(t.point, sla, objective))
    if ranked and ranked[0].settings in seen:
        return []
    found: list[Tried] = []
    for tried in ranked[:MAX_WHOLE_RUNS]:
        wanted = [tried]
        if tried.point.runs_full_decodes_in_base:
            wanted += [
                t
                for t in sliced
                if t.settings.caps == tried.settings.caps and not t.point.runs_full_decodes_in_base
            ]
        known = seen | {t.settings for t in found}
        new = [_whole(question, t.settings) for t in wanted if t.settings not in known]
        found += new
        if any(t.metrics and _meets(t, sla) for t in new) or _is_far(new, sla):
            break
    return found


def _meets(tried: Tried, sla: Sla) -> bool:
    return all(tried.point.is_met(c) for c in sla.per_run)


def _is_far(tried: list[Tried], sla: Sla) -> bool:
    """Whether even the closest is so far from the SLA that the next best need not be tried."""
    return all(not t.metrics or t.point.headroom(sla) < -FAR_SHARE for t in tried)


def _is_hopeless(tried: Tried, sla: Sla) -> bool:
    """Whether the SLA is certainly missed and requests wait so long that no other caps can help.
    TPOT does not count, because caps change it a lot.
    """
    is_missed = tried.note is not None or tried.judged_on is JudgedOn.WHOLE
    return is_missed and any(
        tried.metrics.get(c.key, 0.0) > HOPELESS_RATIO * c.bound
        for c in sla.per_run
        if c.metric in (Metric.TTFT_MS, Metric.E2E_MS)
    )
