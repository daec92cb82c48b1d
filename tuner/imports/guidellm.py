"""GuideLLM's ``benchmarks.json``: one run per benchmark of it.

Its ``time_per_output_token_ms`` divides the whole latency, first token included, by all tokens; its
``inter_token_latency_ms`` of one request is our TPOT, and over a run it weighs requests by their
tokens. Neither is mixed with ``tpot.v1``: where requests are listed TPOT is computed from them,
else both keep ids of their own. Sources: its metrics guide, and ``GenerativeRequestStats``
(guidellm/schemas/request_stats.py, 0.3 to 0.8).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from engine.spec.measurement import Outcome, RequestTiming
from tuner.imports.run import PERCENTILES, ImportedRun, Tool, counts_of, measured, timing

# Its name, ours, the id, and what its unit is in milliseconds.
SUMMARY = (
    ("time_to_first_token_ms", "ttft_ms", "ttft.sent.v1", 1.0),
    ("request_latency", "e2e_ms", "e2e.sent.v1", 1e3),
    ("inter_token_latency_ms", "tpot_by_tokens_ms", "tpot.by_tokens.v1", 1.0),
    ("time_per_output_token_ms", "tpot_with_first_ms", "tpot.with_first.v1", 1.0),
)
NO_ITL = "itl_ms: it keeps the first and the last token of a request, not those between"
NO_TPOT = (
    "tpot_ms: it lists no requests here; inter_token_latency_ms weighs them by tokens, and "
    "time_per_output_token_ms has the first token in it"
)


class _Timings(msgspec.Struct):
    request_start: float | None = None
    first_token_iteration: float | None = None
    last_token_iteration: float | None = None
    first_iteration: float | None = None
    last_iteration: float | None = None


class _Info(msgspec.Struct):
    timings: _Timings


class _Request(msgspec.Struct):
    info: _Info
    prompt_tokens: int | None = None
    output_tokens: int | None = None


class _Requests(msgspec.Struct):
    successful: list[_Request] = []
    errored: list[_Request] = []
    incomplete: list[_Request] = []


class _Benchmark(msgspec.Struct):
    metrics: dict[str, Any]
    config: dict[str, Any] = {}
    requests: _Requests = msgspec.field(default_factory=_Requests)


class _Report(msgspec.Struct):
    benchmarks: list[_Benchmark]


def is_report(document: Any) -> bool:
    """Whether a JSON document is such a report."""
    return isinstance(document, dict) and isinstance(document.get("benchmarks"), list)


def read_report(document: dict[str, Any]) -> list[ImportedRun]:
    """Each benchmark of the report.

    Raises:
        msgspec.ValidationError: a field of another kind, or one that is missing.
    """
    report = msgspec.convert(document, _Report)
    return [_run(benchmark, number) for number, benchmark in enumerate(report.benchmarks)]


def _run(benchmark: _Benchmark, number: int) -> ImportedRun:
    name = f"benchmark {number}: {_strategy(benchmark.config.get('strategy'))}"
    done = benchmark.requests.successful
    if done and all(_first(r) is not None and r.info.timings.request_start for r in done):
        return _per_request(benchmark.requests, name)
    summary: dict[str, Any] = {}
    ids: dict[str, str] = {}
    for theirs, ours, metric_id, factor in SUMMARY:
        if values := _distribution(benchmark.metrics.get(theirs), factor):
            summary[ours], ids[ours] = values, metric_id
    totals = benchmark.metrics.get("request_totals")
    totals = totals if isinstance(totals, dict) else {}
    return ImportedRun(
        tool=Tool.GUIDELLM,
        name=name,
        counts={
            Outcome.COMPLETED: int(totals.get("successful") or len(done)),
            Outcome.ERRORED: int(totals.get("errored") or 0),
            Outcome.CUT: int(totals.get("incomplete") or 0),
        },
        summary=summary,
        ids=ids,
        left_out=(NO_TPOT, NO_ITL),
    )


def _strategy(told: Any) -> str:
    """The kind of load and how much of it, by which the runs of a sweep are told apart."""
    if not isinstance(told, dict) or not isinstance(kind := told.get("type_"), str):
        return "strategy not told"
    for word, unit in (("rate", "requests/s"), ("streams", "streams")):
        if isinstance(most := told.get(word), int | float):
            return f"{kind}, {most:g} {unit}"
    return kind


def _distribution(metric: Any, factor: float) -> dict[str, float] | None:
    """Mean and percentiles of the successful requests of one metric, in milliseconds."""
    values = metric.get("successful") if isinstance(metric, dict) else None
    if not isinstance(values, dict):
        return None
    inner = values.get("percentiles")
    every = {**values, **(inner if isinstance(inner, dict) else {}), "p50": values.get("median")}
    return {
        name: every[name] * factor
        for name in ("mean", *PERCENTILES)
        if isinstance(every.get(name), int | float)
    }


def _per_request(requests: _Requests, name: str) -> ImportedRun:
    begin_s = min(r.info.timings.request_start or 0.0 for r in requests.successful)
    timings = list(_timings(requests.successful, begin_s, is_ok=True))
    timings += _timings(requests.errored, begin_s, is_ok=False)
    counts = {**counts_of(timings), Outcome.CUT: len(requests.incomplete)}
    return ImportedRun(
        tool=Tool.GUIDELLM,
        name=name,
        counts=counts,
        measurement=measured(timings),
        has_itl=False,
        left_out=(NO_ITL,),
    )


def _timings(requests: list[_Request], begin_s: float, *, is_ok: bool) -> Iterator[RequestTiming]:
    for request in requests:
        at = request.info.timings
        first_s = _first(request)
        last_s = at.last_token_iteration or at.last_iteration
        yield timing(
            sent_s=(at.request_start or begin_s) - begin_s,
            prompt_tokens=request.prompt_tokens or 0,
            output_tokens=request.output_tokens or 0,
            first_s=None if first_s is None else first_s - begin_s,
            last_s=None if last_s is None else last_s - begin_s,
            is_ok=is_ok,
        )


def _first(request: _Request) -> float | None:
    at = request.info.timings
    return at.first_token_iteration or at.first_iteration
