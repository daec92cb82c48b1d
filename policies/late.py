"""How many late requests an SLA allows, so that a run can be known to miss it before it ends."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from engine.spec.measurement import Outcome, RequestTiming
from policies.constraint import Constraint, Metric
from policies.sla import Sla


@dataclass(frozen=True, kw_only=True)
class LateLimit:
    """At most ``num_allowed`` requests may be over ``constraint`` by their own value."""

    constraint: Constraint
    num_allowed: int

    @property
    def bound_s(self) -> float:
        return self.constraint.bound / 1e3

    @property
    def is_ttft(self) -> bool:
        return self.constraint.metric is Metric.TTFT_MS

    def num_over(self, timings: Iterable[RequestTiming]) -> int:
        """Requests over the bound; those without a value are not counted."""
        own = (_value_ms(timing, self.constraint.metric) for timing in timings)
        return sum(value is not None and not self.constraint.is_met_by(value) for value in own)

    def is_over(self, timing: RequestTiming) -> bool:
        """Whether a request that has ended counts against it: a failed one always does, as in
        ``policies.attainment``; one that a run cut off never."""
        if timing.outcome is not Outcome.COMPLETED:
            return timing.outcome is not Outcome.CUT
        return self.num_over([timing]) == 1


def late_limits(sla: Sla, num_requests: int) -> tuple[LateLimit, ...]:
    """How many of ``num_requests`` may be over each bound on TTFT, TPOT or E2E.

    A percentile interpolated between two ranks exceeds its bound as soon as the lower rank's value
    does. Bounds on means and on gaps between tokens limit no count of requests.
    """
    found = []
    share = sla.attainment_bound
    for constraint in sla.constraints:
        if constraint.metric not in (Metric.TTFT_MS, Metric.TPOT_MS, Metric.E2E_MS):
            continue
        allowed = [_num_allowed(constraint, num_requests)] if constraint in sla.per_run else []
        if share is not None and constraint.is_per_request:
            allowed.append(math.floor(num_requests * (1 - share) + 1e-9))
        known = [n for n in allowed if n is not None]
        if known:
            found.append(LateLimit(constraint=constraint, num_allowed=min(known)))
    return tuple(found)


def _value_ms(timing: RequestTiming, metric: Metric) -> float | None:
    match metric:
        case Metric.TTFT_MS:
            return timing.ttft_ms
        case Metric.TPOT_MS:
            return timing.tpot_ms
        case _:
            return timing.e2e_ms


def _num_allowed(constraint: Constraint, num_requests: int) -> int | None:
    if constraint.percentile is None:
        return 0
    percent = constraint.percentile.percent
    if percent is None:
        return None
    return num_requests - math.floor(percent / 100 * (num_requests - 1)) - 1
