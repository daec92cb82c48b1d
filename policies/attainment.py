"""Judges a run by an SLA: attainment, goodput, violations (definitions: docs/metrics.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from engine.spec.measurement import Measurement, Outcome, RequestTiming, gaps_ms
from policies.constraint import Constraint, Metric, Percentile
from policies.numbers import short_beside
from policies.sla import Sla


@dataclass(frozen=True, kw_only=True)
class Violation:
    """A constraint that does not hold.

    ``actual`` is None when nothing was observed to judge it by, and infinite when so many
    requests failed that the percentile falls among them.
    """

    constraint: Constraint
    actual: float | None

    def __str__(self) -> str:
        if self.actual is None:
            return f"{self.constraint} (not observed)"
        return f"{self.constraint} ({short_beside(self.actual, self.constraint.bound)})"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One constraint against what was observed; not applicable ones neither pass nor fail."""

    constraint: Constraint
    actual: float | None
    is_applicable: bool
    is_met: bool

    @property
    def margin(self) -> float | None:
        """Share of the budget left (see ``Constraint.margin``); None when there is no number."""
        if not self.is_applicable or self.actual is None:
            return None
        return self.constraint.margin(self.actual)


@dataclass(frozen=True, kw_only=True)
class SlaReport:
    """How a run stands against an SLA.

    ``attainment`` is attainment.v1, met / (completed + errored + timed out); None if there were no
    such requests. ``goodput_rps`` is goodput.v1. ``invalid`` counts completed requests whose TTFT
    or E2E is missing or not positive: they are misses. ``not_applicable`` counts, per constraint
    key, the completed one-token outputs that TPOT and ITL say nothing about.
    """

    attainment: float | None
    goodput_rps: float
    checks: tuple[Check, ...]
    met: int
    invalid: int
    not_applicable: dict[str, int] = field(default_factory=dict)

    @property
    def violations(self) -> tuple[Violation, ...]:
        return tuple(
            Violation(constraint=check.constraint, actual=check.actual)
            for check in self.checks
            if check.is_applicable and not check.is_met
        )

    @property
    def is_met(self) -> bool:
        return not self.violations

    @property
    def verdict(self) -> str:
        """Met, or missed and by what; and what had nothing to be judged by."""
        told = "met" if self.is_met else f"missed: {'; '.join(map(str, self.violations))}"
        idle = ", ".join(str(c.constraint) for c in self.checks if not c.is_applicable)
        return f"{told} (no output has two tokens to judge {idle} by)" if idle else told

    @property
    def headroom(self) -> float | None:
        """The smallest margin of all constraints; None when one could not be observed."""
        margins = [check.margin for check in self.checks if check.is_applicable]
        known = [m for m in margins if m is not None]
        return min(known) if known and len(known) == len(margins) else None


def judge(sla: Sla, measurement: Measurement) -> SlaReport:
    """Judge one run. Errors, timeouts and invalid timings are misses; cut requests are left out.

    Attainment holds each request to every constraint with a percentile (or none) by its own
    value. Percentile and mean constraints are judged on the distribution, where a failed
    request's latency counts as infinite: a run cannot pass by failing its slow requests.
    """
    valid = [t for t in measurement.completed if _is_valid(t)]
    invalid = len(measurement.completed) - len(valid)
    failed = invalid + measurement.count(Outcome.ERRORED) + measurement.count(Outcome.TIMED_OUT)
    met = sum(_meets(t, sla.per_request) for t in valid)
    judged = len(valid) + failed
    attainment = met / judged if judged else None
    window_s = measurement.window_s
    checks = tuple(_check(c, measurement, valid, failed, attainment) for c in sla.per_run)
    return SlaReport(
        attainment=attainment,
        goodput_rps=met / window_s if window_s > 0 else 0.0,
        checks=checks,
        met=met,
        invalid=invalid,
        not_applicable={
            c.key: sum(t.output_tokens == 1 for t in valid)
            for c in sla.constraints
            if c.metric in (Metric.TPOT_MS, Metric.ITL_MS)
        },
    )


def meets(sla: Sla, timing: RequestTiming) -> bool | None:
    """Whether one request meets its SLA, as it counts in attainment; None if it was cut."""
    if timing.outcome is Outcome.CUT:
        return None
    is_completed = timing.outcome is Outcome.COMPLETED and _is_valid(timing)
    return is_completed and _meets(timing, sla.per_request)


def _is_valid(timing: RequestTiming) -> bool:
    values = (timing.ttft_ms, timing.e2e_ms)
    return all(v is not None and math.isfinite(v) and v > 0 for v in values)


def _meets(timing: RequestTiming, constraints: Sequence[Constraint]) -> bool:
    own = ((c, _own_value(timing, c)) for c in constraints)
    return all(value is None or c.is_met_by(value) for c, value in own)


def _own_value(timing: RequestTiming, constraint: Constraint) -> float | None:
    """The request's own number; None if the constraint does not apply to it.

    For ITL it is the same percentile of the request's own gaps, or the largest gap without a
    percentile.
    """
    match constraint.metric:
        case Metric.TTFT_MS:
            return timing.ttft_ms
        case Metric.E2E_MS:
            return timing.e2e_ms
        case Metric.TPOT_MS:
            return timing.tpot_ms
        case Metric.ITL_MS:
            percent = constraint.percentile.percent if constraint.percentile else None
            gaps = timing.itl_ms
            return float(np.percentile(gaps, 100 if percent is None else percent)) if gaps else None
        case _:
            raise AssertionError(f"{constraint} is not held per request")


def _check(
    constraint: Constraint,
    measurement: Measurement,
    valid: Sequence[RequestTiming],
    failed: int,
    attainment: float | None,
) -> Check:
    is_applicable = True
    match constraint.metric:
        case Metric.ATTAINMENT:
            actual = attainment
        case Metric.THROUGHPUT:
            actual = measurement.throughput_tokens_per_s if valid else None
        case Metric.THROUGHPUT_TOTAL:
            actual = measurement.throughput_total_tokens_per_s if valid else None
        case _:
            pooled = _pooled(constraint.metric, valid)
            is_applicable = bool(pooled) or bool(failed) or not valid
            actual = _statistic(constraint, pooled, _num_infinite(pooled, valid, failed))
    is_met = actual is not None and constraint.is_met_by(actual)
    return Check(constraint=constraint, actual=actual, is_applicable=is_applicable, is_met=is_met)


def _pooled(metric: Metric, valid: Sequence[RequestTiming]) -> list[float]:
    match metric:
        case Metric.ITL_MS:
            values: list[float | None] = gaps_ms(valid).tolist()
        case Metric.TTFT_MS:
            values = [t.ttft_ms for t in valid]
        case Metric.TPOT_MS:
            values = [t.tpot_ms for t in valid]
        case _:
            values = [t.e2e_ms for t in valid]
    return [v for v in values if v is not None]


def _num_infinite(pooled: Sequence[float], valid: Sequence[RequestTiming], failed: int) -> int:
    """How many infinite values failed requests add: as many per request as a valid one adds."""
    if not failed:
        return 0
    return math.ceil(failed * len(pooled) / len(valid)) if valid and pooled else failed


def _statistic(constraint: Constraint, finite: Sequence[float], num_infinite: int) -> float | None:
    """Mean, percentile or (for a bound on every request) maximum of the pooled values."""
    total = len(finite) + num_infinite
    if not total:
        return None
    if constraint.percentile is Percentile.MEAN:
        return math.inf if num_infinite else float(np.mean(finite))
    percent = constraint.percentile.percent if constraint.percentile else None
    if not num_infinite:
        return float(np.percentile(finite, 100 if percent is None else percent))
    position = (total - 1) * (100 if percent is None else percent) / 100
    if math.ceil(position) >= len(finite):
        return math.inf
    # Failed requests come last, so any value above the rest can stand for them here.
    padded = [*finite, *[max(finite)] * num_infinite]
    return float(np.percentile(padded, 100 if percent is None else percent))
