"""Why plans fail: what they miss or lack, with the numbers of the settings that came nearest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from engine.spec.settings import Settings
from policies.constraint import Metric
from policies.sla import Sla
from policies.verdict import missed_text
from tuner.planner.alone import bounded_alone
from tuner.planner.explore import Explored, JudgedOn


class Why(StrEnum):
    """What a plan fails by."""

    SHAPE = "shape"
    BACKEND = "backend"
    MEMORY = "memory"
    LOAD = "load"
    TTFT = "ttft"
    TPOT = "tpot"
    ITL = "itl"
    E2E = "e2e"
    ATTAINMENT = "attainment"
    THROUGHPUT = "throughput"

    @classmethod
    def of(cls, metric: Metric) -> Why:
        """What a missed bound on ``metric`` is called."""
        match metric:
            case Metric.ATTAINMENT:
                return cls.ATTAINMENT
            case Metric.THROUGHPUT | Metric.THROUGHPUT_TOTAL:
                return cls.THROUGHPUT
            case _:
                return cls(metric.value.removesuffix("_ms"))


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a plan is not among the feasible ones; ``judged_on`` None: nothing was simulated."""

    plan: str
    why: Why
    detail: str
    judged_on: JudgedOn | None = None
    settings: Settings | None = None


def list_failures(explored: Sequence[Explored], sla: Sla) -> list[Failure]:
    """Plans without one setting that meets the SLA, with the numbers of their best."""
    found = []
    for each in explored:
        if any(all(t.point.is_met(c) for c in sla.per_run) for t in each.whole):
            continue
        found.append(_failure(each, sla))
    return found


def _failure(each: Explored, sla: Sla) -> Failure:
    if each.reason is not None:
        return _ruled_out(each, each.reason, sla)
    if each.whole:
        best = max(each.whole, key=lambda t: t.point.headroom(sla))
        missed = [c for c in sla.per_run if not best.point.is_met(c)]
        detail = ", ".join(missed_text(c, best.point.actual(c)) for c in missed)
    else:
        # Nothing came to its end: a slice or a part showed that the SLA is missed.
        shown = [t for t in each.tried if t.note is not None]
        best = max(shown, key=lambda t: t.point.headroom(sla) if t.metrics else -math.inf)
        detail = best.note or "overloaded"
        missed = []
    worst = min(missed, key=best.point.margin).metric if missed else best.cause
    others = len({t.settings for t in each.tried}) - 1
    more = f" (best of {others + 1} settings)" if others else ""
    return Failure(
        plan=str(each.plan),
        why=Why.of(worst) if worst else Why.LOAD,
        detail=f"{detail}{more}",
        judged_on=best.judged_on,
        settings=best.settings,
    )


def _ruled_out(each: Explored, reason: str, sla: Sla) -> Failure:
    """A plan that a bound condemned before any of its settings ran under load."""
    lone = each.tried[0].point
    missed = [c for c in bounded_alone(sla) if c.key in lone.metrics and not lone.is_met(c)]
    is_alone = each.is_from_alone and bool(missed)
    return Failure(
        plan=str(each.plan),
        why=Why.of(missed[0].metric) if is_alone else Why.LOAD,
        detail=reason,
        judged_on=JudgedOn.ALONE if is_alone else JudgedOn.BOUND,
    )
