"""Tells, before or during a simulation, that a plan cannot meet an SLA whatever its caps are.

Each bound is on the safe side: it never condemns settings that a whole simulation would pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.executors.protocol import StepTimer
from engine.spec.plan import ParallelPlan
from engine.spec.steps import StepShape
from policies.constraint import Constraint, Metric
from policies.late import LateLimit, late_limits
from policies.sla import Sla
from tuner.workload.workload import IntArray, Workload

FloatArray = npt.NDArray[np.float64]

# Prefill step sizes whose speed per token is tried. Their prompts are short, so attention costs
# little.
_STEP_TOKENS = (512, 1024, 2048, 4096, 8192, 16_384, 32_768)
_SHORT_PROMPT = 128


class CertainMissError(Exception):
    """A simulation was stopped because so many requests are late that ``constraint`` is missed
    already."""

    def __init__(self, message: str, constraint: Constraint) -> None:
        super().__init__(message)
        self.constraint = constraint


@dataclass(frozen=True, kw_only=True)
class CertainMiss:
    """The bound that a whole run must miss, and how that is known."""

    constraint: Constraint
    reason: str


def certain_miss(
    num_over: Callable[[LateLimit], int], sla: Sla, *, num_seen: int, num_requests: int
) -> CertainMiss | None:
    """Why a whole run of ``num_requests`` must miss the SLA, judged by a run of ``num_seen`` of
    them, of which ``num_over`` are over a limit's bound.

    The other requests only add load, so requests that are late without them are late with them. Of
    several missed bounds it names the one that most requests exceed. None if no miss is certain.
    """
    counts = [(num_over(limit), limit) for limit in late_limits(sla, num_requests)]
    over = [(count, limit) for count, limit in counts if count > limit.num_allowed]
    if not over:
        return None
    count, limit = max(over, key=lambda pair: pair[0])
    reason = (
        f"{count} of the busiest {num_seen} requests alone miss {limit.constraint}; "
        f"at most {limit.num_allowed} of all {num_requests} may"
    )
    return CertainMiss(constraint=limit.constraint, reason=reason)


class LateWatch:
    """Stops a simulation of an open loop once more requests are late than the SLA allows.

    Call it as ``on_progress``. It counts the requests that arrived longer ago than the bound and
    have not ended. For E2E all of them are late. For TTFT those that may be running are not
    counted.
    """

    def __init__(self, workload: Workload, sla: Sla, *, max_running: int) -> None:
        self._arrival_s = workload.arrival_s
        limits = late_limits(sla, len(workload)) if workload.closed is None else ()
        self._limits = [x for x in limits if x.constraint.metric is not Metric.TPOT_MS]
        self._max_running = max_running

    def __call__(self, now_s: float, num_ended: int, num_requests: int) -> None:
        """Raises CertainMissError."""
        for limit in self._limits:
            # Arrivals ascend, so the place of a time among them is how many came before it.
            due = int(np.searchsorted(self._arrival_s, now_s - limit.bound_s))
            late = due - num_ended - (self._max_running if limit.is_ttft else 0)
            if late > limit.num_allowed:
                raise CertainMissError(
                    f"stopped {now_s:.0f} s in: more than {limit.num_allowed} of {num_requests} "
                    f"requests miss {limit.constraint}",
                    limit.constraint,
                )


def backlog_reason(
    timer: StepTimer,
    plan: ParallelPlan,
    workload: Workload,
    sla: Sla,
    computed_tokens: IntArray | None = None,
) -> str | None:
    """Why prefill alone, at its fastest, is too slow for the arrivals; None if it may be fast
    enough.

    It computes one first-come, first-served queue at ``dp`` times the best prefill speed of a
    replica; decodes cost nothing. Real replicas share work less evenly than one large queue. That
    can make a request earlier, but by less than the longest prompt's own time, which is taken off.
    ``computed_tokens`` is what is computed of each prompt at least (None: all of it).
    """
    limits = [limit for limit in late_limits(sla, len(workload)) if limit.is_ttft]
    if workload.closed is not None or not limits:
        return None
    token_s = best_prefill_token_s(timer, plan)
    own_s = (workload.input_tokens if computed_tokens is None else computed_tokens) * token_s
    wait_s = _waits(workload.arrival_s, own_s / plan.dp)
    longest_s = float(own_s.max()) if plan.dp > 1 else 0.0
    ttft_s = np.maximum(0.0, wait_s - longest_s) + own_s
    for limit in limits:
        late = int((ttft_s > limit.bound_s).sum())
        if late > limit.num_allowed:
            rate = plan.dp / token_s
            return (
                f"prefill alone, at its best {rate:.0f} tokens/s, leaves {late} of "
                f"{len(workload)} requests over {limit.constraint}"
            )
    return None


def best_prefill_token_s(timer: StepTimer, plan: ParallelPlan) -> float:
    """Seconds per prompt token of one replica's busiest stage, in its best mode and step size."""
    shapes = [
        StepShape(
            mode=mode,
            num_seqs=num_tokens // _SHORT_PROMPT,
            num_prefill_tokens=num_tokens,
            prefill_context_tokens=num_tokens,
            prefill_attention_pairs=num_tokens * (_SHORT_PROMPT + 1) // 2,
            num_sampled=1,
        )
        for mode in plan.modes
        for num_tokens in _STEP_TOKENS
    ]
    return min(max(timer.stage_seconds(shape)) / shape.num_tokens for shape in shapes)


def _waits(arrival_s: FloatArray, work_s: FloatArray) -> FloatArray:
    """Lindley's recursion: how long each arrival waits for the work before it."""
    waits = np.zeros(len(arrival_s))
    for i in range(1, len(waits)):
        gap_s = arrival_s[i] - arrival_s[i - 1]
        waits[i] = max(0.0, waits[i - 1] + work_s[i - 1] - gap_s)
    return waits
