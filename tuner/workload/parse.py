"""Workload SPECs: ``KIND:PATH-or-words,option=value,...`` -> :class:`Workload`.

Traces: ``azure:PATH``, ``mooncake:PATH``, ``csv:PATH`` (also JSONL). Processes (rates in
requests per second, lengths in tokens):

* ``poisson:rate=4,input=512,output=64``
* ``gamma:rate=4,cv=3,input=512,output=64``
* ``step:rate=2,to=8,at=30,input=..,output=..`` (the rate jumps ``at`` seconds in)
* ``ramp:rate=1,to=10,input=..,output=..`` (the rate moves linearly)
* ``burst:rate=2,peak=20,on_s=5,off_s=20,input=..,output=..`` (two-state Markov-modulated)
* ``azure-like:`` (bursty, with the Azure code trace's published statistics)
* ``closed:concurrency=16,input=1024,output=256,requests=160`` (closed loop)

``input_cv=`` and ``output_cv=`` spread the lengths log-normally. Options of every kind, in the
order they act: ``start=``, ``seconds=`` (a window of the source's own time), ``requests=`` (its
first rows), ``keep=`` (a seeded share), ``input_scale=``, ``output_scale=``, ``max_input=``,
``max_output=`` (longer ones are shortened), ``scale=`` (times the rate, or a closed loop's
concurrency: the same requests, faster). Every cut is reported in ``Workload.source``.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from tuner.spec.errors import WorkloadError
from tuner.workload import synthetic
from tuner.workload.rows import RowCuts, Rows
from tuner.workload.workload import (
    Arrival,
    ClosedLoop,
    Cut,
    CutKind,
    FloatArray,
    Workload,
    WorkloadSource,
    rows_sha256,
)

__all__ = [
    "Arrival",
    "ClosedLoop",
    "Cut",
    "CutKind",
    "Workload",
    "WorkloadSource",
    "parse_workload",
]

DEFAULT_SECONDS = 60.0
TRACE_KINDS = ("azure", "mooncake", "csv")
_LENGTH_WORDS = ("input", "output", "input_cv", "output_cv")
# Words of each process, the needed ones and the optional ones.
_PROCESS_WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "poisson": (("rate", "input", "output"), _LENGTH_WORDS),
    "gamma": (("rate", "cv", "input", "output"), _LENGTH_WORDS),
    "step": (("rate", "to", "at", "input", "output"), _LENGTH_WORDS),
    "ramp": (("rate", "to", "input", "output"), _LENGTH_WORDS),
    "burst": (("rate", "peak", "on_s", "off_s", "input", "output"), _LENGTH_WORDS),
    "azure-like": ((), ()),
    "closed": (("concurrency", "input", "output", "requests"), _LENGTH_WORDS),
}
_CUT_WORDS = (
    "start",
    "seconds",
    "requests",
    "keep",
    "scale",
    "input_scale",
    "output_scale",
    "max_input",
    "max_output",
)
_WHOLE = ("requests", "max_input", "max_output", "concurrency")
_MAY_BE_ZERO = ("start", "at", "input_cv", "output_cv")


def parse_workload(spec: str, *, seed: int) -> Workload:
    """Build the workload that ``spec`` names; the same spec and seed give the same requests.

    Raises:
        WorkloadError: an unknown kind or word, a value outside its range, or nothing left.
        TraceError: a trace file or row that cannot be read.
    """
    kind, has_colon, rest = spec.partition(":")
    kind = kind.strip()
    if not has_colon or kind not in (*TRACE_KINDS, *_PROCESS_WORDS):
        known = ", ".join(f"{k}:" for k in (*TRACE_KINDS, *_PROCESS_WORDS))
        raise WorkloadError(f"workload {spec!r}: unknown kind {kind!r}; known are {known}")
    if kind in TRACE_KINDS:
        return _trace(spec, kind, rest, seed)
    words = _read_words(spec, kind, rest)
    return _closed(spec, words, seed) if kind == "closed" else _process(spec, kind, words, seed)


def _trace(spec: str, kind: str, rest: str, seed: int) -> Workload:
    # A path may hold a comma: options start at the first ",word=".
    path_text, *options = re.split(r",(?=\s*[a-z_]+\s*=)", rest)
    if not path_text.strip():
        raise WorkloadError(f"workload {spec!r}: no path; write it as in {kind}:PATH,seconds=60")
    words = _numbers(spec, kind, options, _CUT_WORDS)
    from tuner.workload import traces

    path = Path(path_text.strip())
    if kind == "azure":
        rows = traces.read_azure(path)
    elif kind == "mooncake":
        rows = traces.read_mooncake(path, seed=seed)
    else:
        rows = traces.read_own(path)
    return _finish(spec, rows, words, seed)


def _process(spec: str, kind: str, words: dict[str, float], seed: int) -> Workload:
    """A synthetic process; without ``seconds=`` it lasts as long as needed, else the default."""
    seconds = words.pop("seconds", None)
    if seconds is None:
        seconds = _default_seconds(kind, words)
    lasting = words.get("start", 0.0) + seconds
    rng = np.random.default_rng([seed, 0xA771])
    times = _times(kind, words, lasting, rng)
    if kind == "azure-like":
        shape = synthetic.AzureLikeShape()
        inputs = synthetic.quantile_lengths(rng, shape.levels, shape.inputs, times.size)
        outputs = synthetic.quantile_lengths(rng, shape.levels, shape.outputs, times.size)
        rows = Rows(arrival_s=times, input_tokens=inputs, output_tokens=outputs)
    else:
        rows = _with_lengths(times, words, rng)
    return _finish(spec, rows, words, seed)


def _default_seconds(kind: str, words: dict[str, float]) -> float:
    if kind == "azure-like":
        return synthetic.AzureLikeShape().span_s
    if "requests" in words and kind in ("poisson", "gamma"):
        # Long enough that the window almost surely holds them; the rest is cut, and reported.
        wanted = words["requests"]
        return (wanted + 6 * max(1.0, words.get("cv", 1.0)) * math.sqrt(wanted)) / words["rate"]
    return DEFAULT_SECONDS


def _times(
    kind: str, words: dict[str, float], seconds: float, rng: np.random.Generator
) -> FloatArray:
    segment = synthetic.RateSegment
    match kind:
        case "azure-like":
            shape = synthetic.AzureLikeShape()
            return synthetic.azure_like_times(rng, shape, seconds=seconds)
        case "poisson" | "gamma":
            cv = words.get("cv", 1.0)
            return synthetic.gamma_times(rng, rate_rps=words["rate"], cv=cv, seconds=seconds)
        case "step":
            at, low, high = min(words["at"], seconds), words["rate"], words["to"]
            parts = [
                segment(seconds=at, from_rps=low, to_rps=low),
                segment(seconds=seconds - at, from_rps=high, to_rps=high),
            ]
        case "ramp":
            parts = [segment(seconds=seconds, from_rps=words["rate"], to_rps=words["to"])]
        case _:
            parts = synthetic.burst_segments(
                rng,
                rate_rps=words["rate"],
                peak_rps=words["peak"],
                on_s=words["on_s"],
                off_s=words["off_s"],
                seconds=seconds,
            )
    return synthetic.varying_times(rng, parts)


def _with_lengths(times: FloatArray, words: dict[str, float], rng: np.random.Generator) -> Rows:
    inputs = synthetic.lengths(
        rng, mean=words["input"], cv=words.get("input_cv", 0.0), count=times.size
    )
    outputs = synthetic.lengths(
        rng, mean=words["output"], cv=words.get("output_cv", 0.0), count=times.size
    )
    return Rows(arrival_s=times, input_tokens=inputs, output_tokens=outputs)


def _closed(spec: str, words: dict[str, float], seed: int) -> Workload:
    count = int(words.pop("requests"))
    limit_s = words.pop("seconds", None)
    rows = _with_lengths(np.zeros(count), words, np.random.default_rng([seed, 0xC105]))
    workload = _finish(spec, rows, words, seed)
    concurrency = max(1, round(words["concurrency"] * words.get("scale", 1.0)))
    return replace(workload, closed=ClosedLoop(concurrency=concurrency, limit_s=limit_s))


def _finish(spec: str, rows: Rows, words: dict[str, float], seed: int) -> Workload:
    cuts = _row_cuts(words)
    kept, made = cuts.apply(rows, np.random.default_rng([seed, 0x5EED]))
    arrivals = kept.arrivals()
    source = WorkloadSource(
        spec=spec,
        seed=seed,
        sha256=rows.sha256 or rows_sha256(rows.arrivals()),
        rows=len(rows),
        span_s=rows.span_s,
        scale=cuts.scale,
        input_scale=cuts.input_scale,
        output_scale=cuts.output_scale,
        spread_s=rows.spread_s,
        cuts=made,
    )
    return Workload(arrivals=arrivals, source=source)


def _row_cuts(words: dict[str, float]) -> RowCuts:
    def whole(name: str) -> int | None:
        return int(words[name]) if name in words else None

    return RowCuts(
        start_s=words.get("start", 0.0),
        seconds=words.get("seconds"),
        requests=whole("requests"),
        keep=words.get("keep", 1.0),
        scale=words.get("scale", 1.0),
        input_scale=words.get("input_scale", 1.0),
        output_scale=words.get("output_scale", 1.0),
        max_input=whole("max_input"),
        max_output=whole("max_output"),
    )


def _read_words(spec: str, kind: str, rest: str) -> dict[str, float]:
    needed, optional = _PROCESS_WORDS[kind]
    parts = rest.split(",") if rest.strip() else []
    words = _numbers(spec, kind, parts, (*needed, *optional, *_CUT_WORDS))
    for word in needed:
        if word not in words:
            example = ",".join(f"{w}=.." for w in needed)
            raise WorkloadError(f"workload {spec!r}: {word}= is missing; write {kind}:{example}")
    if kind == "closed" and "start" in words:
        raise WorkloadError(f"workload {spec!r}: start= has no meaning in a closed loop")
    return words


def _numbers(spec: str, kind: str, parts: list[str], known: tuple[str, ...]) -> dict[str, float]:
    words: dict[str, float] = {}
    for part in parts:
        word, _, raw = (piece.strip() for piece in part.partition("="))
        if word not in known:
            listed = ", ".join(dict.fromkeys(known))
            raise WorkloadError(f"workload {spec!r}: unknown word {word!r}; {kind}: takes {listed}")
        if word in words:
            raise WorkloadError(f"workload {spec!r}: {word}= stands twice")
        words[word] = _number(spec, word, raw)
    return words


def _number(spec: str, word: str, raw: str) -> float:
    try:
        value = float(raw)
    except ValueError as error:
        raise WorkloadError(f"workload {spec!r}: {word}={raw!r} is not a number") from error
    lowest = "at least 0" if word in _MAY_BE_ZERO else "above 0"
    if not math.isfinite(value) or value < 0 or (value == 0 and word not in _MAY_BE_ZERO):
        raise WorkloadError(f"workload {spec!r}: {word}={raw} must be {lowest}")
    if word in _WHOLE and value != int(value):
        raise WorkloadError(f"workload {spec!r}: {word}={raw} is not a whole number")
    if word == "keep" and value > 1:
        raise WorkloadError(f"workload {spec!r}: keep={raw} is a share of at most 1")
    return value
