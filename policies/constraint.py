"""One bound of an SLA: which number, which way, how far."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from policies.errors import PolicyInputError


class Metric(StrEnum):
    """What an SLA may constrain, by the definitions of ``engine.spec.measurement.METRIC_IDS``."""

    TTFT_MS = "ttft_ms"
    TPOT_MS = "tpot_ms"
    ITL_MS = "itl_ms"
    E2E_MS = "e2e_ms"
    ATTAINMENT = "attainment"
    THROUGHPUT = "throughput_tokens_per_s"
    THROUGHPUT_TOTAL = "throughput_total_tokens_per_s"

    @property
    def is_latency(self) -> bool:
        return self.value.endswith("_ms")

    @property
    def op(self) -> Op:
        """The only direction in which a bound on this metric makes sense."""
        return Op.AT_MOST if self.is_latency else Op.AT_LEAST


class Op(StrEnum):
    """Direction of a bound."""

    AT_MOST = "<="
    AT_LEAST = ">="


class Percentile(StrEnum):
    """Which number of a latency distribution is bound."""

    MEAN = "mean"
    P50 = "p50"
    P90 = "p90"
    P95 = "p95"
    P99 = "p99"

    @property
    def percent(self) -> float | None:
        """50, 90, 95 or 99; None for the mean."""
        return None if self is Percentile.MEAN else float(self.value[1:])


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """One bound. ``percentile`` None on a latency: every request is held to it.

    Raises:
        PolicyInputError: a bound or direction that can never be meant.
    """

    metric: Metric
    bound: float
    percentile: Percentile | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.bound) and self.bound > 0):
            raise PolicyInputError(f"{self.key}: the bound {self.bound} must be above 0 and finite")
        if self.metric is Metric.ATTAINMENT and self.bound > 1:
            raise PolicyInputError(
                f"attainment>={self.bound:g}: a share is at most 1; write 0.99 for 99 %"
            )
        if self.percentile is not None and not self.metric.is_latency:
            raise PolicyInputError(f"{self.key}: only latencies have percentiles")

    @property
    def op(self) -> Op:
        return self.metric.op

    @property
    def key(self) -> str:
        """The constrained number's name, as in ``p95_ttft_ms`` or ``attainment``."""
        return f"{self.percentile}_{self.metric}" if self.percentile else str(self.metric)

    @property
    def is_per_request(self) -> bool:
        """Whether each request is held to the bound when attainment is judged.

        A bound on a mean says nothing about one request, nor do attainment and throughput.
        """
        return self.metric.is_latency and self.percentile is not Percentile.MEAN

    def is_met_by(self, actual: float) -> bool:
        return actual <= self.bound if self.op is Op.AT_MOST else actual >= self.bound

    def margin(self, actual: float) -> float:
        """Share of the budget left: 1 = untouched, 0 = exactly met, negative = missed.

        For attainment the budget is the allowed share of misses, ``1 - bound``.
        """
        if self.op is Op.AT_MOST:
            return 1 - actual / self.bound
        if self.metric is Metric.ATTAINMENT and self.bound < 1:
            return 1 - (1 - actual) / (1 - self.bound)
        return actual / self.bound - 1

    def __str__(self) -> str:
        return f"{self.key}{self.op}{_number_text(self.bound)}"


def _number_text(value: float) -> str:
    """The shortest text that reads back as the same number, without a trailing ``.0``."""
    return repr(value).removesuffix(".0")
