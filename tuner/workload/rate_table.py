"""Rate tables derived from ServeGen: requests per second and mean lengths of each window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tuner.spec.errors import TraceError
from tuner.workload import synthetic
from tuner.workload.bounds import MAX_DRAWN, MAX_LENGTH_TOKENS, MAX_SPAN_S
from tuner.workload.rows import Rows, Wanted
from tuner.workload.trace_file import TraceFile, TraceRow
from tuner.workload.workload import IntArray

COLUMNS = ("window_start_s", "rate_rps", "mean_input_tokens", "mean_output_tokens")
# Spread of lengths inside a window where the SPEC does not say: as wide as an exponential.
DEFAULT_CV = 1.0


@dataclass(frozen=True, kw_only=True)
class _Window:
    start_s: float
    end_s: float
    rate_rps: float
    mean_input: float
    mean_output: float
    where: str


@dataclass(frozen=True, kw_only=True)
class RateTableReader:
    """Requests drawn from a table of windows: Poisson arrivals at each window's rate, lengths
    log-normal around its means, spread by ``input_cv=`` and ``output_cv=``.

    A table may stand for billions of requests, so only the part between ``start=`` and
    ``start + seconds`` is drawn, or its first ``requests=``.
    """

    word: str = "servegen"
    form: str = "CSV with window_start_s,rate_rps,...,mean_input_tokens,mean_output_tokens"
    words: tuple[str, ...] = ("input_cv", "output_cv")

    def recognises(self, head: TraceFile) -> bool:
        return set(COLUMNS) <= set(head.columns)

    def check(self, file: TraceFile) -> None:
        _read_windows(file)

    def read(self, file: TraceFile, wanted: Wanted) -> Rows:
        rng = np.random.default_rng([wanted.seed, 0x5E47])
        parts: list[Rows] = []
        expected = 0.0
        for window in _clipped(_read_windows(file), wanted):
            expected += window.rate_rps * (window.end_s - window.start_s)
            if expected > MAX_DRAWN:
                raise TraceError(
                    f"{window.where}: more than {MAX_DRAWN} requests up to here; take a part of "
                    "the table with start= and seconds=, or requests="
                )
            parts.append(_draw(window, wanted, rng))
            if wanted.requests is not None and sum(map(len, parts)) >= wanted.requests:
                break
        return Rows(
            arrival_s=np.concatenate([np.empty(0), *(p.arrival_s for p in parts)]),
            input_tokens=_joined([p.input_tokens for p in parts]),
            output_tokens=_joined([p.output_tokens for p in parts]),
            sha256=file.sha256,
        )


def _read_windows(file: TraceFile) -> list[_Window]:
    rows = list(file.csv_rows(COLUMNS))
    starts = [row.number("window_start_s") for row in rows]
    windows = []
    for index, row in enumerate(rows):
        width = starts[index + 1] - starts[index] if index + 1 < len(rows) else None
        if width is None:
            width = starts[index] - starts[index - 1] if index else 1.0
        if width <= 0:
            raise TraceError(f"{rows[index + 1].where}: window_start_s does not rise")
        if starts[index] + width > MAX_SPAN_S:
            raise TraceError(f"{row.where}: the window ends after {MAX_SPAN_S:g} s")
        windows.append(_window(row, starts[index], width))
    return windows


def _window(row: TraceRow, start_s: float, width_s: float) -> _Window:
    rate = row.number("rate_rps")
    # An empty window has no means.
    means = [_mean(row, name) if rate > 0 else 0.0 for name in COLUMNS[2:]]
    return _Window(
        start_s=start_s,
        end_s=start_s + width_s,
        rate_rps=rate,
        mean_input=means[0],
        mean_output=means[1],
        where=row.where,
    )


def _mean(row: TraceRow, name: str) -> float:
    mean = row.number(name)
    if not 0 < mean <= MAX_LENGTH_TOKENS:
        raise TraceError(
            f"{row.where}: {name} {mean:g} is not above 0 and at most {MAX_LENGTH_TOKENS}"
        )
    return mean


def _clipped(windows: list[_Window], wanted: Wanted) -> Iterator[_Window]:
    """The parts of windows with requests that lie between start and start + seconds."""
    for w in windows:
        start, end = max(w.start_s, wanted.start_s), min(w.end_s, wanted.end_s)
        if w.rate_rps > 0 and start < end:
            yield _Window(
                start_s=start,
                end_s=end,
                rate_rps=w.rate_rps,
                mean_input=w.mean_input,
                mean_output=w.mean_output,
                where=w.where,
            )


def _draw(window: _Window, wanted: Wanted, rng: np.random.Generator) -> Rows:
    seconds = window.end_s - window.start_s
    times = window.start_s + np.sort(rng.random(rng.poisson(window.rate_rps * seconds))) * seconds

    def lengths(mean: float, cv: float | None) -> IntArray:
        spread = DEFAULT_CV if cv is None else cv
        return synthetic.lengths(rng, mean=mean, cv=spread, count=times.size)

    return Rows(
        arrival_s=times,
        input_tokens=lengths(window.mean_input, wanted.input_cv),
        output_tokens=lengths(window.mean_output, wanted.output_cv),
    )


def _joined(
    columns: list[IntArray],
) -> IntArray:
    return np.concatenate([np.empty(0, dtype=np.int64), *columns])
