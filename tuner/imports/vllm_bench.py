"""``vllm bench serve --save-result``, with ``--save-detailed`` every request.

Source: the fields that its ``benchmark`` function writes (vllm/benchmarks/serve.py, 0.10 to 0.32).
"""

from __future__ import annotations

from typing import Any

import msgspec

from engine.spec.measurement import Outcome
from tuner.imports.run import PERCENTILES, ImportedRun, Tool, counts_of, measured, timing

# Its names for our latencies.
NAMES = {"ttft_ms": "ttft", "tpot_ms": "tpot", "itl_ms": "itl", "e2e_ms": "e2el"}
ITL_OF_CHUNKS = "itl_ms: some answers came with several tokens in a chunk, whose gaps are not known"


class _Result(msgspec.Struct):
    completed: int
    output_throughput: float
    total_token_throughput: float | None = None
    failed: int = 0
    model_id: str | None = None
    request_rate: float | str | None = None
    input_lens: list[int] | None = None
    output_lens: list[int] | None = None
    ttfts: list[float] | None = None
    itls: list[list[float]] | None = None
    start_times: list[float] | None = None
    errors: list[str] | None = None


def is_result(document: Any) -> bool:
    """Whether a JSON document is such a result."""
    return isinstance(document, dict) and {"request_throughput", "output_throughput"} <= set(
        document
    )


def read_result(document: dict[str, Any]) -> ImportedRun:
    """The run that the file tells of.

    Raises:
        msgspec.ValidationError: a field of another kind, or one that is missing.
    """
    result = msgspec.convert(document, _Result)
    name = f"{result.model_id or 'model'}, request rate {result.request_rate or 'not told'}"
    has_times = any(result.start_times or ())
    if has_times and result.ttfts and result.output_lens and result.input_lens:
        return _per_request(result, name)
    summary: dict[str, Any] = {}
    for ours, theirs in NAMES.items():
        values = {"mean": document.get(f"mean_{theirs}_ms")}
        values |= {p: document.get(f"{p}_{theirs}_ms") for p in PERCENTILES}
        values["p50"] = values["p50"] or document.get(f"median_{theirs}_ms")
        if any(value is not None for value in values.values()):
            summary[ours] = values
    summary["throughput_tokens_per_s"] = result.output_throughput
    if result.total_token_throughput is not None:
        summary["throughput_total_tokens_per_s"] = result.total_token_throughput
    return ImportedRun(
        tool=Tool.VLLM_BENCH,
        name=name,
        counts={Outcome.COMPLETED: result.completed, Outcome.ERRORED: result.failed},
        summary=summary,
    )


def _per_request(result: _Result, name: str) -> ImportedRun:
    starts_s, ttfts_s = result.start_times or [], result.ttfts or []
    inputs, outputs = result.input_lens or [], result.output_lens or []
    every = len(starts_s)
    itls_s = result.itls or [[]] * every
    errors = result.errors or [""] * every
    if any(len(column) != every for column in (ttfts_s, inputs, outputs, itls_s, errors)):
        raise msgspec.ValidationError("lists of requests of different lengths")
    rows = zip(starts_s, ttfts_s, inputs, outputs, itls_s, errors, strict=True)
    # What ended before it was sent has none, which is 0.
    begin_s = min(start_s for start_s in starts_s if start_s)
    timings, has_chunks = [], False
    for start_s, ttft_s, prompt_tokens, output_tokens, gaps_s, error in rows:
        sent_s = (start_s or begin_s) - begin_s
        has_chunks |= not error and len(gaps_s) != max(0, output_tokens - 1)
        timings.append(
            timing(
                sent_s=sent_s,
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
                first_s=sent_s + ttft_s,
                last_s=sent_s + ttft_s + sum(gaps_s),
                gaps_s=gaps_s,
                is_ok=not error,
            )
        )
    return ImportedRun(
        tool=Tool.VLLM_BENCH,
        name=name,
        counts=counts_of(timings),
        measurement=measured(timings),
        has_itl=not has_chunks,
        left_out=(ITL_OF_CHUNKS,) if has_chunks else (),
    )
