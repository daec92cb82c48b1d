"""AIPerf's ``profile_export.jsonl`` (every request) and ``profile_export_aiperf.json`` (a summary).

Source: its page on profile export files and its metrics reference (docs.nvidia.com/aiperf).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from engine.spec.measurement import Outcome
from tuner.imports.run import PERCENTILES, ImportedRun, Tool, counts_of, measured, timing

# Its inter_token_latency is of one request, without the first token: our TPOT.
SUMMARY = {
    "time_to_first_token": "ttft_ms",
    "request_latency": "e2e_ms",
    "inter_token_latency": "tpot_ms",
}
THROUGHPUTS = {
    "output_token_throughput": "throughput_tokens_per_s",
    "total_token_throughput": "throughput_total_tokens_per_s",
}
PROFILING = "profiling"
NO_ITL = "itl_ms: its chunks may hold several tokens, whose gaps are not known"


class _Value(msgspec.Struct):
    value: float | list[float]
    unit: str | None = None

    @property
    def number(self) -> float | None:
        return None if isinstance(self.value, list) else self.value


class _Metadata(msgspec.Struct):
    request_start_ns: int
    benchmark_phase: str = PROFILING
    was_cancelled: bool = False


class _Record(msgspec.Struct):
    metadata: _Metadata
    metrics: dict[str, _Value] = {}
    error: Any = None

    def number(self, name: str) -> float | None:
        found = self.metrics.get(name)
        return None if found is None else found.number

    def find_ms(self, name: str) -> _Value | None:
        """Raises msgspec.ValidationError for a unit other than ms."""
        found = self.metrics.get(name)
        if found is not None:
            _require_ms(name, found.unit)
        return found


class _Summary(msgspec.Struct):
    avg: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    unit: str | None = None


def is_record(document: Any) -> bool:
    """Whether a line of a JSONL file is one of its records."""
    metadata = document.get("metadata") if isinstance(document, dict) else None
    return isinstance(metadata, dict) and "request_start_ns" in metadata


def is_summary(document: Any) -> bool:
    """Whether a JSON document is its summary."""
    return isinstance(document, dict) and {"request_throughput", "request_latency"} <= set(document)


def read_records(documents: Sequence[Any]) -> ImportedRun:
    """The run of these records; warm-up requests are left out.

    Raises:
        msgspec.ValidationError: a field of another kind, or one that is missing.
    """
    every = msgspec.convert(documents, list[_Record])
    records = [record for record in every if record.metadata.benchmark_phase == PROFILING]
    if not records:
        raise msgspec.ValidationError("no record of the profiling phase")
    begin_ns = min(record.metadata.request_start_ns for record in records)
    timings, has_chunks = [], False
    for record in records:
        sent_s = (record.metadata.request_start_ns - begin_ns) / 1e9
        ttft, latency = (record.find_ms(n) for n in ("time_to_first_token", "request_latency"))
        ttft_ms, latency_ms = (None if v is None else v.number for v in (ttft, latency))
        outputs = int(record.number("output_sequence_length") or 0)
        gaps = record.find_ms("inter_chunk_latency")
        gaps_ms = gaps.value if gaps is not None and isinstance(gaps.value, list) else []
        is_ok = record.error is None and not record.metadata.was_cancelled
        has_chunks |= is_ok and len(gaps_ms) != max(0, outputs - 1)
        timings.append(
            timing(
                sent_s=sent_s,
                prompt_tokens=int(record.number("input_sequence_length") or 0),
                output_tokens=outputs,
                first_s=None if ttft_ms is None else sent_s + ttft_ms / 1e3,
                last_s=None if latency_ms is None else sent_s + latency_ms / 1e3,
                gaps_s=[gap_ms / 1e3 for gap_ms in gaps_ms],
                is_ok=is_ok,
            )
        )
    return ImportedRun(
        tool=Tool.AIPERF,
        name=f"{len(timings)} requests",
        counts=counts_of(timings),
        measurement=measured(timings),
        has_itl=not has_chunks,
        left_out=(NO_ITL,) if has_chunks else (),
    )


def read_summary(document: dict[str, Any]) -> ImportedRun:
    """The run that the summary tells of.

    Raises:
        msgspec.ValidationError: a field of another kind, or one that is missing.
    """

    def find(name: str) -> _Summary | None:
        found = document.get(name)
        return None if found is None else msgspec.convert(found, _Summary)

    summary: dict[str, Any] = {}
    for theirs, ours in SUMMARY.items():
        if (found := find(theirs)) is not None:
            _require_ms(theirs, found.unit)
            summary[ours] = {"mean": found.avg} | {p: getattr(found, p) for p in PERCENTILES}
    for theirs, ours in THROUGHPUTS.items():
        if (found := find(theirs)) is not None:
            summary[ours] = found.avg
    done, failed = find("request_count"), find("error_request_count")
    return ImportedRun(
        tool=Tool.AIPERF,
        name="summary",
        counts={
            Outcome.COMPLETED: int(done.avg or 0) if done else 0,
            Outcome.ERRORED: int(failed.avg or 0) if failed else 0,
        },
        summary=summary,
        left_out=(NO_ITL,),
    )


def _require_ms(name: str, unit: str | None) -> None:
    if unit not in ("ms", None):
        raise msgspec.ValidationError(f"{name} is in {unit}, ms is known")
