"""Request timings and what they add up to. Definitions: the metric ids of ``METRIC_IDS``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import chain

import numpy as np
import numpy.typing as npt

from engine.spec.energy import EnergyUse

FloatArray = npt.NDArray[np.float64]

# One id per definition, stored beside every number (docs/metrics.md).
METRIC_IDS = {
    "ttft_ms": "ttft.v1",
    "tpot_ms": "tpot.v1",
    "itl_ms": "itl.v1",
    "e2e_ms": "e2e.v1",
    "throughput_tokens_per_s": "throughput.v1",
    "throughput_total_tokens_per_s": "throughput.total.v1",
    "goodput_rps": "goodput.v1",
    "attainment": "attainment.v1",
}
PERCENTILES = (50, 90, 95, 99)


class Fidelity(StrEnum):
    """Where a number comes from, weakest first; every number carries it."""

    PREDICTED = "predicted"
    SIMULATED = "simulated"
    PROBED = "probed"
    MEASURED = "measured"


class Outcome(StrEnum):
    """How a request ended. ``cut``: unfinished at the end of the run, in neither side."""

    COMPLETED = "completed"
    ERRORED = "errored"
    TIMED_OUT = "timed_out"
    CUT = "cut"


@dataclass(frozen=True, kw_only=True)
class RequestTiming:
    """One request's life in seconds on one clock.

    ``scheduled_s`` is when it should have been sent (open loop), ``sent_s`` when it was.
    ``token_s`` are the stamps of its output tokens, the first one the first token.
    """

    scheduled_s: float
    sent_s: float
    token_s: tuple[float, ...]
    prompt_tokens: int
    outcome: Outcome = Outcome.COMPLETED

    @property
    def output_tokens(self) -> int:
        return len(self.token_s)

    @property
    def ttft_ms(self) -> float | None:
        """ttft.v1; None when no token arrived."""
        return (self.token_s[0] - self.scheduled_s) * 1e3 if self.token_s else None

    @property
    def e2e_ms(self) -> float | None:
        """e2e.v1; None when no token arrived."""
        return (self.token_s[-1] - self.scheduled_s) * 1e3 if self.token_s else None

    @property
    def tpot_ms(self) -> float | None:
        """tpot.v1; None (not applicable) for fewer than two tokens."""
        if len(self.token_s) < 2:
            return None
        return (self.token_s[-1] - self.token_s[0]) * 1e3 / (len(self.token_s) - 1)

    @property
    def itl_ms(self) -> tuple[float, ...]:
        """itl.v1: gaps between output tokens."""
        return tuple((b - a) * 1e3 for a, b in zip(self.token_s, self.token_s[1:], strict=False))


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Mean and percentiles of one metric; None everywhere when nothing was observed."""

    mean: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None

    @classmethod
    def of(cls, values: Iterable[float] | FloatArray) -> Distribution:
        """Percentiles by linear interpolation."""
        array = np.fromiter(values, np.float64) if not isinstance(values, np.ndarray) else values
        if not array.size:
            return cls(mean=None, p50=None, p90=None, p95=None, p99=None)
        p50, p90, p95, p99 = (float(v) for v in np.percentile(array, PERCENTILES))
        return cls(mean=float(array.mean()), p50=p50, p90=p90, p95=p95, p99=p99)

    def to_json(self) -> dict[str, float | None]:
        return {
            "mean": self.mean,
            "p50": self.p50,
            "p90": self.p90,
            "p95": self.p95,
            "p99": self.p99,
        }


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a run (live or simulated) yielded: its timings, and distributions derived from them.

    ``driver_lag_ms`` is how late the load driver itself sent (0 in simulation). ``energy`` is what
    the target's devices took from the start of the run to its end, None where nobody knows.
    """

    fidelity: Fidelity
    timings: tuple[RequestTiming, ...]
    driver_lag_ms: Distribution
    energy: EnergyUse | None = None

    @cached_property
    def completed(self) -> tuple[RequestTiming, ...]:
        return tuple(t for t in self.timings if t.outcome is Outcome.COMPLETED)

    def count(self, outcome: Outcome) -> int:
        return sum(t.outcome is outcome for t in self.timings)

    @cached_property
    def window_s(self) -> float:
        """First arrival to last completion, seconds; 0 when nothing completed."""
        done = [t for t in self.completed if t.token_s]
        if not done:
            return 0.0
        return max(t.token_s[-1] for t in done) - min(t.scheduled_s for t in self.timings)

    @property
    def ttft_ms(self) -> Distribution:
        return Distribution.of(t.ttft_ms for t in self.completed if t.ttft_ms is not None)

    @property
    def tpot_ms(self) -> Distribution:
        return Distribution.of(t.tpot_ms for t in self.completed if t.tpot_ms is not None)

    @property
    def itl_ms(self) -> Distribution:
        return Distribution.of(gaps_ms(self.completed))

    @property
    def e2e_ms(self) -> Distribution:
        return Distribution.of(t.e2e_ms for t in self.completed if t.e2e_ms is not None)

    @property
    def throughput_tokens_per_s(self) -> float:
        """throughput.v1: output tokens per second."""
        return self._rate(self.output_tokens)

    @property
    def throughput_total_tokens_per_s(self) -> float:
        """throughput.total.v1: input and output tokens per second."""
        return self._rate(self.total_tokens)

    @property
    def output_tokens(self) -> int:
        """Output tokens of completed requests."""
        return sum(t.output_tokens for t in self.completed)

    @property
    def total_tokens(self) -> int:
        """Input and output tokens of completed requests."""
        return sum(t.output_tokens + t.prompt_tokens for t in self.completed)

    def _rate(self, num_tokens: int) -> float:
        window = self.window_s
        return num_tokens / window if window > 0 else 0.0


def gaps_ms(timings: Sequence[RequestTiming]) -> FloatArray:
    """itl.v1 of these requests, one after the other, f8[gaps]."""
    lengths = [len(t.token_s) for t in timings]
    stamps = chain.from_iterable(t.token_s for t in timings)
    gaps = np.diff(np.fromiter(stamps, np.float64, sum(lengths))) * 1e3
    # Between the last token of one request and the first of the next there is no gap.
    is_inside = np.ones(len(gaps), dtype=np.bool_)
    ends = np.cumsum(lengths, dtype=np.int64)
    is_inside[ends[(ends > 0) & (ends <= len(gaps))] - 1] = False
    return np.asarray(gaps[is_inside])
