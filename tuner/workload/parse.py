"""Workload SPECs: ``KIND:PATH-or-words,option=value,...`` -> :class:`Workload`.

Traces: ``azure:PATH``, ``burstgpt:PATH``, ``mooncake:PATH``, ``servegen:PATH``, ``csv:PATH``
(also JSON lines), or ``auto:PATH``, which recognises the format by its first rows
(:mod:`tuner.workload.traces`). Processes (rates in requests per second, lengths in tokens):

* ``poisson:rate=4,input=512,output=64``
* ``gamma:rate=4,cv=3,input=512,output=64``
* ``step:rate=2,to=8,at=30,input=..,output=..`` (the rate jumps ``at`` seconds in)
* ``ramp:rate=1,to=10,input=..,output=..`` (the rate moves linearly)
* ``burst:rate=2,peak=20,on_s=5,off_s=20,input=..,output=..`` (two-state Markov-modulated)
* ``azure-like:`` (bursty, with the Azure code trace's published statistics)
* ``closed:concurrency=16,input=1024,output=256,requests=160`` (closed loop)

Lengths vary where ``input=`` and ``output=`` say how (:mod:`tuner.workload.lengths`), as in
``input=uniform:0.8..1*1024``; ``input_cv=`` and ``output_cv=`` spread them log-normally. Instead of
both, ``lengths=auto:PATH`` draws prompt and answer together from the requests of a trace (or
``lengths=azure:PATH`` and so on, by its format). Clients of a closed loop start at once, or one
after the other over ``stagger_s=`` seconds. Options of every kind, in the order they act:
``start=``, ``seconds=`` (a window of the source's own time), ``requests=`` (its first rows),
``keep=`` (a seeded share), ``input_scale=``, ``output_scale=``, ``max_input=``, ``max_output=``
(longer ones are shortened), ``scale=`` (times the rate, or a closed loop's concurrency: the same
requests, faster). Every cut is reported in ``Workload.source``. The range of every word, and the
most a workload may be, are in :mod:`tuner.workload.bounds`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tuner.spec.errors import WorkloadError
from tuner.workload import synthetic, traces
from tuner.workload.bounds import (
    MAX_LENGTH_TOKENS,
    MAX_SEGMENTS,
    MAX_SPAN_S,
    WORD_BOUNDS,
    check_drawn,
    check_size,
)
from tuner.workload.lengths import LengthLaw, Lognormal
from tuner.workload.rows import RowCuts, Rows, Wanted
from tuner.workload.spec import AZURE_LIKE, CLOSED, WorkloadSpec
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
    "check_workload",
    "parse_workload",
]


DEFAULT_SECONDS = 60.0


def parse_workload(spec: str, *, seed: int) -> Workload:
    """Build the workload that ``spec`` names; the same spec and seed give the same requests.

    Raises:
        WorkloadError: an unknown kind or word, a value outside its range, more than a workload
            may be, or nothing left; for a trace also a file or row that cannot be read.
    """
    read = WorkloadSpec.parse(spec)
    if read.is_trace:
        return _trace(read, seed)
    return _closed(read, seed) if read.kind == CLOSED else _process(read, seed)


def check_workload(spec: str) -> None:
    """Find what would make :func:`parse_workload` fail, without building anything.

    Of a trace the first rows are read; what a process draws is judged by its mean.

    Raises:
        WorkloadError: as :func:`parse_workload`.
    """
    read = WorkloadSpec.parse(spec)
    if read.path is not None and read.is_trace:
        traces.check_trace(read.kind, read.path)
        return
    if read.lengths is not None:
        read.lengths.check()
    if read.kind == CLOSED:
        _check_mean_size(read, read.words["requests"])
        _concurrency(read)
    else:
        seconds = _lasting_s(read)
        if read.kind in ("poisson", "gamma"):
            _check_mean_size(read, read.words["rate"] * seconds)


def _trace(spec: WorkloadSpec, seed: int) -> Workload:
    assert spec.path is not None, "a trace has a path"
    words = spec.words
    wanted = Wanted(
        seed=seed,
        start_s=words.get("start", 0.0),
        seconds=words.get("seconds"),
        requests=_whole(words, "requests"),
        output_tokens=max(1, round(words["output"])) if "output" in words else None,
        input_cv=words.get("input_cv"),
        output_cv=words.get("output_cv"),
    )
    return _finish(spec, traces.read_trace(spec.kind, spec.path, wanted), seed)


def _process(spec: WorkloadSpec, seed: int) -> Workload:
    """A synthetic process; without ``seconds=`` it lasts as long as needed, else the default."""
    lasting = _lasting_s(spec)
    rng = np.random.default_rng([seed, 0xA771])
    times = _times(spec.kind, spec.words, lasting, rng)
    if not times.size:
        raise WorkloadError(
            f"workload {spec.text!r}: nothing arrives within {lasting:g} s; take more seconds="
        )
    if spec.kind == AZURE_LIKE:
        shape = synthetic.AzureLikeShape()
        inputs = synthetic.quantile_lengths(rng, shape.levels, shape.inputs, times.size)
        outputs = synthetic.quantile_lengths(rng, shape.levels, shape.outputs, times.size)
        rows = Rows(arrival_s=times, input_tokens=inputs, output_tokens=outputs)
    else:
        rows = _with_lengths(times, spec, rng, seed)
    if _lasts_as_needed(spec.kind, spec.words) and "start" not in spec.words:
        # Drawn for its first requests alone: nobody asked for those beyond, so they are no cut.
        first = np.arange(len(rows)) < spec.words["requests"]
        return _finish(spec.without("requests"), rows.only(first), seed)
    # How long it lasts has been drawn; it is not a cut.
    return _finish(spec.without("seconds"), rows, seed)


def _lasting_s(spec: WorkloadSpec) -> float:
    """How many seconds a process is drawn for.

    Raises:
        WorkloadError: so long or so fast that too much would be drawn.
    """
    words = spec.words
    seconds = words.get("seconds")
    if seconds is None:
        seconds = _default_seconds(spec.kind, words)
        if seconds > WORD_BOUNDS["seconds"].high:
            raise WorkloadError(
                f"workload {spec.text!r}: requests={words['requests']:g} at rate={words['rate']:g} "
                f"last {seconds:.3g} s; at most {WORD_BOUNDS['seconds'].high:g}"
            )
    lasting = words.get("start", 0.0) + seconds
    if words.get("at", 0.0) >= lasting:
        raise WorkloadError(
            f"workload {spec.text!r}: at={words['at']:g} is not before its end after {lasting:g} "
            "s, so the rate would never change; take more seconds="
        )
    rates = [words[word] for word in ("rate", "to", "peak") if word in words]
    check_drawn(spec.text, max(rates, default=synthetic.AzureLikeShape.mean_rps) * lasting)
    if spec.kind == "burst":
        pairs = lasting / (words["on_s"] + words["off_s"])
        if 2 * pairs > MAX_SEGMENTS:
            raise WorkloadError(
                f"workload {spec.text!r}: about {pairs:.3g} bursts; at most {MAX_SEGMENTS // 2}, "
                "so raise on_s= or off_s=, or take fewer seconds="
            )
    return lasting


def _check_mean_size(spec: WorkloadSpec, requests: float) -> None:
    words = spec.words
    kept = min(requests, words.get("requests", math.inf)) * words.get("keep", 1.0)
    tokens = 0.0  # of lengths that a trace has nothing is known before it is read
    for name in ("input", "output") if spec.lengths is None else ():
        mean = words[name] * words.get(f"{name}_scale", 1.0)
        tokens += kept * min(mean, words.get(f"max_{name}", math.inf))
    check_size(spec.text, requests=kept, tokens=tokens)


def _default_seconds(kind: str, words: Mapping[str, float]) -> float:
    if kind == AZURE_LIKE:
        return synthetic.AzureLikeShape().span_s
    if _lasts_as_needed(kind, words):
        # Long enough that the window almost surely holds them.
        wanted = words["requests"]
        return (wanted + 6 * max(1.0, words.get("cv", 1.0)) * math.sqrt(wanted)) / words["rate"]
    return DEFAULT_SECONDS


def _lasts_as_needed(kind: str, words: Mapping[str, float]) -> bool:
    """Whether a process ends with its last request, since only their number was given."""
    return "requests" in words and "seconds" not in words and kind in ("poisson", "gamma")


def _times(
    kind: str, words: Mapping[str, float], seconds: float, rng: np.random.Generator
) -> FloatArray:
    segment = synthetic.RateSegment
    match kind:
        case "azure-like":
            shape = synthetic.AzureLikeShape()
            return synthetic.azure_like_times(rng, shape, seconds=seconds)
        case "poisson" | "gamma":
            return synthetic.gamma_times(
                rng,
                rate_rps=words["rate"],
                cv=words.get("cv", 1.0),
                seconds=seconds,
                is_under_way=not _lasts_as_needed(kind, words),
            )
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


def _with_lengths(
    times: FloatArray, spec: WorkloadSpec, rng: np.random.Generator, seed: int
) -> Rows:
    if spec.lengths is None:
        inputs, outputs = (_law(spec, word).draw(rng, times.size) for word in ("input", "output"))
    else:
        inputs, outputs = spec.lengths.draw(rng, times.size, seed=seed)
    return Rows(arrival_s=times, input_tokens=inputs, output_tokens=outputs)


def _law(spec: WorkloadSpec, word: str) -> LengthLaw:
    usual = Lognormal(mean=spec.words[word], cv=spec.words.get(f"{word}_cv", 0.0))
    return spec.laws.get(word, usual)


def _closed(spec: WorkloadSpec, seed: int) -> Workload:
    words = spec.words
    concurrency = _concurrency(spec)
    count = int(words["requests"])
    rows = _with_lengths(np.zeros(count), spec, np.random.default_rng([seed, 0xC105]), seed)
    workload = _finish(spec.without("requests", "seconds"), rows, seed)
    closed = ClosedLoop(
        concurrency=concurrency,
        limit_s=words.get("seconds"),
        stagger_s=words.get("stagger_s", 0.0),
    )
    return replace(workload, closed=closed)


def _concurrency(spec: WorkloadSpec) -> int:
    clients = max(1, round(spec.words["concurrency"] * spec.words.get("scale", 1.0)))
    if clients > WORD_BOUNDS["concurrency"].high:
        raise WorkloadError(
            f"workload {spec.text!r}: concurrency times scale is {clients}; at most "
            f"{WORD_BOUNDS['concurrency'].high:g}"
        )
    return clients


def _finish(spec: WorkloadSpec, rows: Rows, seed: int) -> Workload:
    cuts = _row_cuts(spec.words)
    kept, made = cuts.apply(rows, np.random.default_rng([seed, 0x5EED]))
    _check_built(spec, kept)
    arrivals = kept.arrivals()
    source = WorkloadSource(
        spec=spec.text,
        seed=seed,
        sha256=rows.sha256 or rows_sha256(rows.arrivals()),
        rows=len(rows) + sum(cut.rows for cut in rows.cuts),
        span_s=rows.span_s,
        scale=cuts.scale,
        input_scale=cuts.input_scale,
        output_scale=cuts.output_scale,
        spread_s=rows.spread_s,
        cuts=(*rows.cuts, *made),
    )
    return Workload(arrivals=arrivals, source=source)


def _check_built(spec: WorkloadSpec, rows: Rows) -> None:
    """Raises WorkloadError where what is left is more than a workload may be."""
    if not len(rows):
        return
    for name, lengths in (("input", rows.input_tokens), ("output", rows.output_tokens)):
        if lengths.max() > MAX_LENGTH_TOKENS:
            raise WorkloadError(
                f"workload {spec.text!r}: one {name} has {lengths.max()} tokens; at most "
                f"{MAX_LENGTH_TOKENS} may be, so add max_{name}="
            )
    if rows.arrival_s[-1] > MAX_SPAN_S:
        raise WorkloadError(
            f"workload {spec.text!r}: its last request comes after {rows.arrival_s[-1]:.3g} s; at "
            f"most {MAX_SPAN_S:g} may be"
        )
    tokens = rows.input_tokens.sum() + rows.output_tokens.sum()
    check_size(spec.text, requests=len(rows), tokens=float(tokens))


def _row_cuts(words: Mapping[str, float]) -> RowCuts:
    return RowCuts(
        start_s=words.get("start", 0.0),
        seconds=words.get("seconds"),
        requests=_whole(words, "requests"),
        keep=words.get("keep", 1.0),
        scale=words.get("scale", 1.0),
        input_scale=words.get("input_scale", 1.0),
        output_scale=words.get("output_scale", 1.0),
        max_input=_whole(words, "max_input"),
        max_output=_whole(words, "max_output"),
    )


def _whole(words: Mapping[str, float], name: str) -> int | None:
    return int(words[name]) if name in words else None
