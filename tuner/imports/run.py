"""One run of another tool, and what its numbers are called here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate
from typing import Any

from engine.spec.measurement import (
    METRIC_IDS,
    Distribution,
    Fidelity,
    Measurement,
    Outcome,
    RequestTiming,
)
from policies.attainment import judge
from policies.constraint import Metric
from policies.report import measurement_json, sla_json
from policies.sla import Sla
from tuner.spec.errors import TunerError
from tuner.workload.bounds import MAX_LENGTH_TOKENS

SCHEMA = "imported-run/v1"
# These tools count from when a request was sent, not from when it was due.
SENT_IDS = {"ttft_ms": "ttft.sent.v1", "e2e_ms": "e2e.sent.v1"}
IDS = {**METRIC_IDS, **SENT_IDS}
PERCENTILES = ("p50", "p90", "p95", "p99")


class ImportFileError(TunerError):
    """A result file that cannot be read, with the way out."""


class Tool(StrEnum):
    """Load tools whose files are known."""

    VLLM_BENCH = "vllm bench serve"
    GUIDELLM = "GuideLLM"
    AIPERF = "AIPerf"

    @property
    def every_request(self) -> str:
        """How it is had to tell of every request."""
        match self:
            case Tool.VLLM_BENCH:
                return "run it with --save-detailed"
            case Tool.GUIDELLM:
                return "have its benchmarks.json list the requests"
            case Tool.AIPERF:
                return "import its profile_export.jsonl"


@dataclass(frozen=True, kw_only=True)
class ImportedRun:
    """A run as its file tells it.

    If the file has every request, ``measurement`` has them, and metrics are computed here, by our
    definitions. If not, ``summary`` has the tool's own numbers under our names, and ``ids`` the ids
    of definitions that differ from ours. ``has_itl``: whether the gaps between tokens are known.
    ``left_out`` says what the file has and we do not take, and why.
    """

    tool: Tool
    name: str
    counts: Mapping[Outcome, int]
    measurement: Measurement | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)
    ids: Mapping[str, str] = field(default_factory=dict)
    has_itl: bool = True
    left_out: tuple[str, ...] = ()

    def to_json(self, sla: Sla | None = None) -> dict[str, Any]:
        """A document like that of ``gearshift bench --json``, with its origin.

        Raises:
            ImportFileError: the SLA binds what the file does not tell.
        """
        origin = {
            "schema": SCHEMA,
            "tool": self.tool.value,
            "name": self.name,
            "is_per_request": self.measurement is not None,
            "left_out": list(self.left_out),
        }
        if self.measurement is not None:
            document = measurement_json(self.measurement, self._judgeable(sla))
            if not self.has_itl:
                document["metrics"]["itl_ms"] = None
            judged = None if sla is None else sla_json(sla, judge(sla, self.measurement))
            return {**origin, **document, "sla": judged, "metric_ids": {**IDS, **self.ids}}
        if sla is not None:
            raise ImportFileError(
                f"{self.tool}, {self.name}: an SLA is judged request by request, and this file has "
                f"a summary only; leave out --sla, or {self.tool.every_request}"
            )
        return {
            **origin,
            "fidelity": Fidelity.MEASURED.value,
            "metrics": dict(self.summary),
            "sla": None,
            "requests": {outcome.value: self.counts.get(outcome, 0) for outcome in Outcome},
            "metric_ids": {name: {**IDS, **self.ids}[name] for name in self.summary},
        }

    def _judgeable(self, sla: Sla | None) -> Sla | None:
        if sla is not None and not self.has_itl:
            for constraint in sla.constraints:
                if constraint.metric is Metric.ITL_MS:
                    raise ImportFileError(f"{constraint}: {self.left_out[-1]}")
        return sla


def measured(timings: Sequence[RequestTiming]) -> Measurement:
    """The run of these requests; nobody knows how late its driver was."""
    return Measurement(
        fidelity=Fidelity.MEASURED, timings=tuple(timings), driver_lag_ms=Distribution.of(())
    )


def timing(
    *,
    sent_s: float,
    prompt_tokens: int,
    output_tokens: int,
    first_s: float | None = None,
    last_s: float | None = None,
    gaps_s: Sequence[float] = (),
    is_ok: bool = True,
) -> RequestTiming:
    """One request. ``first_s`` and ``last_s`` are when its first and last token came, ``gaps_s``
    those between tokens where the file has one for each; else they are taken as equal, which
    leaves TTFT, TPOT and E2E as they were.

    Raises:
        ValueError: more tokens than a request can have.
    """
    if output_tokens > MAX_LENGTH_TOKENS:
        raise ValueError(f"a request of {output_tokens} tokens; at most {MAX_LENGTH_TOKENS} may be")
    stamps: tuple[float, ...] = ()
    if is_ok and first_s is not None and output_tokens > 0:
        stamps = (first_s,)
        if len(gaps_s) == output_tokens - 1:
            stamps = tuple(accumulate(gaps_s, initial=first_s))
        elif last_s is not None and output_tokens > 1:
            step_s = (last_s - first_s) / (output_tokens - 1)
            stamps = tuple(first_s + n * step_s for n in range(output_tokens))
    return RequestTiming(
        scheduled_s=sent_s,
        sent_s=sent_s,
        token_s=stamps,
        prompt_tokens=prompt_tokens,
        outcome=Outcome.COMPLETED if is_ok else Outcome.ERRORED,
    )


def counts_of(timings: Sequence[RequestTiming]) -> dict[Outcome, int]:
    return {outcome: sum(t.outcome is outcome for t in timings) for outcome in Outcome}
