"""Whether one request alone meets an SLA. If it does not, no settings and no patience help."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from policies.constraint import Constraint, Metric, Percentile
from policies.points import Estimate
from policies.sla import Sla

MEDIAN = 0.5


def is_feasible_when_idle(sla: Sla | None, alone: Mapping[str, Estimate]) -> bool | None:
    """Whether requests that have the engine for themselves meet the latencies of ``sla``.

    ``alone`` has their latencies by the SLA's words, as in ``p50_ttft_ms``. A mean and any
    percentile above the median are compared with the median, because they depend on how long the
    longest requests are, which differs from one stretch of traffic to the next. False only if even
    the fast end of an interval is over a bound; None if nothing is known. Floors of throughput are
    not looked at: an idle engine has none.
    """
    if sla is None:
        return None
    judged = [
        constraint.is_met_by(estimate.low)
        for constraint, estimate in _evidence(sla, alone)
        if estimate is not None
    ]
    return all(judged) if judged else None


def _evidence(
    sla: Sla, alone: Mapping[str, Estimate]
) -> Iterator[tuple[Constraint, Estimate | None]]:
    for constraint in sla.per_run:
        if constraint.metric.is_latency:
            percent = constraint.percentile.percent if constraint.percentile else None
            share = 1.0 if percent is None else percent / 100
            yield constraint, _find_at(alone, constraint.metric, share)
    if (share_met := sla.attainment_bound) is None:
        return
    for constraint in sla.per_request:
        # Each request is held to a percentile of its own gaps; pooled gaps say nothing about that.
        if constraint.metric is not Metric.ITL_MS:
            yield constraint, _find_at(alone, constraint.metric, share_met)


def _find_at(alone: Mapping[str, Estimate], metric: Metric, share: float) -> Estimate | None:
    """The latency at the highest known percentile, up to the median, that ``share`` of the requests
    includes. If it is over a bound, fewer than ``share`` of them meet the bound.
    """
    known = [
        alone[key]
        for percentile in Percentile
        if percentile.percent is not None
        and percentile.percent <= 100 * min(share, MEDIAN)
        and (key := f"{percentile}_{metric}") in alone
    ]
    return known[-1] if known else None
