"""Readers of request traces, one per format, and the one place where formats are registered.

A row that cannot be read is an error with file and line number. A row without output is left
out and counted: there is nothing to generate for it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from engine.spec.extensions import ExtensionPoint, make_extensions
from tuner.spec.errors import TraceError, TunerError
from tuner.workload.bounds import MAX_SPAN_S
from tuner.workload.rate_table import RateTableReader
from tuner.workload.rows import Rows, Wanted
from tuner.workload.trace_file import TraceFile, TraceRow
from tuner.workload.workload import Cut, CutKind

AUTO = "auto"
AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BURST_COLUMNS = ("Timestamp", "Request tokens", "Response tokens")
OWN_COLUMNS = ("arrival_s", "input_tokens", "output_tokens")
_STAMP = re.compile(
    r"(\d{4}-\d{2}-\d{2})[ T](\d{2}:\d{2}:\d{2})(\.\d{1,9})? ?(Z|[+-]\d{2}:?\d{2})?", re.ASCII
)
# Stamps count as quantised when more than this share of rows repeats the stamp before.
_QUANTISED_SHARE = 0.5


class TraceReader(Protocol):
    """One format of traces.

    ``word`` stands before the colon of a SPEC; ``form`` says what a file looks like; ``words``
    are the SPEC's words that only this format takes. A reader keeps nothing between calls.
    """

    @property
    def word(self) -> str: ...

    @property
    def form(self) -> str: ...

    @property
    def words(self) -> tuple[str, ...]: ...

    def recognises(self, head: TraceFile) -> bool:
        """Whether the first rows are of this format. Never raises."""
        ...

    def check(self, file: TraceFile) -> None:
        """Read every row, keep none.

        Raises:
            TraceError: a row that cannot be read.
        """
        ...

    def read(self, file: TraceFile, wanted: Wanted) -> Rows:
        """The requests in order of arrival; the same file and ``wanted`` give the same ones.

        Raises:
            TraceError: a row that cannot be read.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class _Request:
    """One row: its time in seconds of the format's own clock, whole and fraction apart."""

    at_s: float
    part_s: float = 0.0
    input_tokens: int
    output_tokens: int
    prefix_id: str | None = None
    hash_ids: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _RowReader(ABC):
    """Formats with a row per request. Every row is read; cuts are made afterwards."""

    words: tuple[str, ...] = ()

    def check(self, file: TraceFile) -> None:
        for _ in self._requests(file, None):
            pass

    def read(self, file: TraceFile, wanted: Wanted) -> Rows:
        return _rows(file, self._requests(file, wanted.output_tokens))

    @abstractmethod
    def _requests(self, file: TraceFile, default: int | None) -> Iterator[_Request]:
        """The rows in the file's order; ``default``: output tokens where a row tells none."""


@dataclass(frozen=True, kw_only=True)
class AzureReader(_RowReader):
    """Azure LLM 2023 and later: ``2023-11-16 18:15:46.6805900,374,44``.

    Stamps may be ISO with ``T``, ``Z`` or an offset, with up to nine fractional digits or none.
    """

    word: str = "azure"
    form: str = "CSV with TIMESTAMP,ContextTokens,GeneratedTokens"

    def recognises(self, head: TraceFile) -> bool:
        return set(AZURE_COLUMNS) <= set(head.columns)

    def _requests(self, file: TraceFile, default: int | None) -> Iterator[_Request]:
        del default  # outputs are always told
        for row in file.csv_rows(AZURE_COLUMNS):
            whole, part = _stamp(row, "TIMESTAMP")
            yield _Request(
                at_s=whole,
                part_s=part,
                input_tokens=row.tokens("ContextTokens"),
                output_tokens=row.tokens("GeneratedTokens", least=0),
            )


@dataclass(frozen=True, kw_only=True)
class BurstGptReader(_RowReader):
    """BurstGPT CSV: ``Timestamp`` in seconds; failed requests have no response tokens."""

    word: str = "burstgpt"
    form: str = "CSV with Timestamp,Model,Request tokens,Response tokens,..."

    def recognises(self, head: TraceFile) -> bool:
        return set(BURST_COLUMNS) <= set(head.columns)

    def _requests(self, file: TraceFile, default: int | None) -> Iterator[_Request]:
        del default  # outputs are always told
        for row in file.csv_rows(BURST_COLUMNS):
            outputs = row.tokens("Response tokens", least=0)
            # A failed request may have neither; one that was answered had a prompt.
            inputs = row.tokens("Request tokens", least=1 if outputs else 0)
            yield _Request(at_s=row.number("Timestamp"), input_tokens=inputs, output_tokens=outputs)


@dataclass(frozen=True, kw_only=True)
class MooncakeReader(_RowReader):
    """Mooncake JSONL: ``timestamp`` (ms), ``input_length``, ``output_length``, ``hash_ids``.

    Where stamps are quantised (3 s in the public slice), arrivals are spread inside their bin,
    in file order, by seed; ``spread_s`` of the rows then tells the usual bin width.

    A later turn of a ``session_id`` may have a ``delay`` (ms) instead of a stamp: it arrives that
    long after the turn before, since the trace does not tell how long the answer took. A row
    without ``output_length`` takes the SPEC's ``output=``, or is left out without one.
    """

    word: str = "mooncake"
    form: str = "JSON lines with timestamp,input_length,output_length"
    words: tuple[str, ...] = ("output",)

    def recognises(self, head: TraceFile) -> bool:
        return _has_json_keys(head, ("input_length",))

    def read(self, file: TraceFile, wanted: Wanted) -> Rows:
        rows = super().read(file, wanted)
        return spread_quantised(rows, np.random.default_rng([wanted.seed, 0x3EC]))

    def _requests(self, file: TraceFile, default: int | None) -> Iterator[_Request]:
        last_ms: dict[str, float] = {}
        for row in file.json_rows():
            session = row.find_text("session_id")
            at_ms = _turn_ms(row, last_ms.get(session) if session is not None else None)
            if session is not None:
                last_ms[session] = at_ms
            has_output = row.fields.get("output_length") is not None
            yield _Request(
                at_s=at_ms / 1e3,
                input_tokens=row.tokens("input_length"),
                output_tokens=row.tokens("output_length", least=0) if has_output else default or 0,
                hash_ids=_hash_ids(row),
            )


@dataclass(frozen=True, kw_only=True)
class OwnReader(_RowReader):
    """Our own ``arrival_s,input_tokens,output_tokens[,prefix_id]``, CSV or JSON lines."""

    word: str = "csv"
    form: str = "CSV or JSON lines with arrival_s,input_tokens,output_tokens"

    def recognises(self, head: TraceFile) -> bool:
        return set(OWN_COLUMNS) <= set(head.columns) or _has_json_keys(head, OWN_COLUMNS)

    def _requests(self, file: TraceFile, default: int | None) -> Iterator[_Request]:
        del default  # outputs are always told
        is_json = file.path.suffix in (".jsonl", ".json", ".ndjson") or file.is_json
        for row in file.json_rows() if is_json else file.csv_rows(OWN_COLUMNS):
            yield _Request(
                at_s=row.number("arrival_s"),
                input_tokens=row.tokens("input_tokens"),
                output_tokens=row.tokens("output_tokens", least=0),
                prefix_id=row.find_text("prefix_id"),
            )


# A format of ours is added here and nowhere else; the first that recognises a file reads it.
READERS: tuple[TraceReader, ...] = (
    AzureReader(),
    BurstGptReader(),
    MooncakeReader(),
    RateTableReader(),
    OwnReader(),
)
TRACE_WORDS = (*(reader.word for reader in READERS), AUTO)
EXTENSIONS = ExtensionPoint.TRACE_READERS


def list_readers() -> tuple[TraceReader, ...]:
    """Our readers, then those that installed packages bring (``EXTENSIONS``).

    Raises:
        TunerError: an extension that cannot be loaded, or is named as a format of ours.
    """
    extensions: dict[str, TraceReader] = make_extensions(EXTENSIONS, TunerError)
    for name, reader in extensions.items():
        if reader.word != name or name in TRACE_WORDS:
            raise TunerError(
                f"extension {name!r} of {EXTENSIONS}: its word is {reader.word!r}; it must be its "
                f"entry point's name, and none of {', '.join(TRACE_WORDS)}"
            )
    return (*READERS, *extensions.values())


def trace_words() -> tuple[str, ...]:
    """What may stand before the colon of a trace's SPEC."""
    return (*(reader.word for reader in list_readers()), AUTO)


def reader_for(word: str, head: TraceFile) -> TraceReader:
    """The reader that ``word`` names; for ``auto`` the one that recognises the first rows.

    Raises:
        TraceError: none does; the message tells every format.
    """
    readers = list_readers()
    for reader in readers:
        if word == reader.word or (word == AUTO and reader.recognises(head)):
            return reader
    if not head.raw.strip():
        raise TraceError(f"{head.path}: is empty")
    known = "; ".join(f"{reader.word}: {reader.form}" for reader in readers)
    raise TraceError(f"{head.path}: its first rows are of no known format; known are {known}")


def words_of(kind: str) -> tuple[str, ...]:
    """The words of a SPEC that only traces of this kind take; ``auto`` takes those of all."""
    return tuple(word for r in list_readers() if kind in (r.word, AUTO) for word in r.words)


def read_trace(kind: str, path: Path, wanted: Wanted) -> Rows:
    """The requests of a trace file.

    Raises:
        TraceError: the file or a row cannot be read.
    """
    file = TraceFile.open(path)
    return reader_for(kind, file.head).read(file, wanted)


def check_trace(kind: str, path: Path) -> None:
    """Read the first rows of a trace file.

    Raises:
        TraceError: the file or one of those rows cannot be read.
    """
    head = TraceFile.open_head(path)
    reader_for(kind, head).check(head)


def spread_quantised(rows: Rows, rng: np.random.Generator) -> Rows:
    """Spread rows that share a stamp evenly at random over the time until the next stamp."""
    stamps, counts = np.unique(rows.arrival_s, return_counts=True)
    if len(rows) < 2 or len(stamps) < 2 or 1 - len(stamps) / len(rows) <= _QUANTISED_SHARE:
        return rows
    widths = np.diff(stamps)
    usual = float(np.median(widths))
    # A silent bin must not be filled: rows stay within one usual bin of their stamp.
    widths = np.minimum(np.append(widths, usual), usual)
    arrival_s = np.concatenate(
        [
            stamp + np.sort(rng.random(count)) * width
            for stamp, width, count in zip(stamps, widths, counts, strict=True)
        ]
    )
    return replace(rows, arrival_s=arrival_s - arrival_s[0], spread_s=usual)


def _rows(file: TraceFile, requests: Iterator[_Request]) -> Rows:
    """Columns in order of arrival (rows of equal time keep the file's order), from time 0."""
    read = list(requests)
    kept = [request for request in read if request.output_tokens > 0]
    first_s = min((request.at_s for request in kept), default=0.0)
    # Whole seconds first: the fraction of an epoch's time would lose its microseconds.
    times = np.array([r.at_s - first_s + r.part_s for r in kept], dtype=np.float64)
    order = np.argsort(times, kind="stable")
    kept = [kept[i] for i in order]
    times = times[order] - times[order[0]] if kept else times
    if kept and times[-1] > MAX_SPAN_S:
        raise TraceError(
            f"{file.path}: first and last row are {times[-1]:.3g} s apart; at most {MAX_SPAN_S:g}"
        )
    return Rows(
        arrival_s=times,
        input_tokens=np.array([r.input_tokens for r in kept], dtype=np.int64),
        output_tokens=np.array([r.output_tokens for r in kept], dtype=np.int64),
        prefix_ids=_or_none(tuple(r.prefix_id for r in kept)),
        hash_ids=_or_none(tuple(r.hash_ids for r in kept)),
        sha256=file.sha256,
        cuts=_no_output_cut(read),
    )


def _or_none(column: tuple[Any, ...]) -> tuple[Any, ...]:
    return column if any(column) else ()


def _no_output_cut(read: list[_Request]) -> tuple[Cut, ...]:
    silent = [request for request in read if request.output_tokens == 0]
    if not silent:
        return ()
    return (
        Cut(
            kind=CutKind.NO_OUTPUT,
            limit=1,
            rows=len(silent),
            of_rows=len(read),
            tokens=sum(request.input_tokens for request in silent),
        ),
    )


def _stamp(row: TraceRow, name: str) -> tuple[float, float]:
    """Whole seconds since the epoch, and the fraction beyond them; UTC unless it says else."""
    what = "a time like 2023-11-16 18:15:46.6805900"
    text = row.read(name, lambda value: isinstance(value, str), what)
    match = _STAMP.fullmatch(text.strip())
    if match is None:
        raise TraceError(f"{row.where}: {name} {text[:60]!r} is not {what}")
    day, time, part, zone = match.groups()
    try:
        whole = datetime.fromisoformat(f"{day} {time}{zone or 'Z'}").timestamp()
    except (ValueError, OverflowError) as error:
        raise TraceError(f"{row.where}: {name} {text[:60]!r} is not {what}") from error
    return whole, float(part or 0.0)


def _turn_ms(row: TraceRow, before_ms: float | None) -> float:
    """A row's time in ms; without a stamp, ``delay`` after the turn before in its session."""
    if row.fields.get("timestamp") is None and "delay" in row.fields and before_ms is not None:
        return before_ms + row.number("delay")
    return row.number("timestamp")


def _hash_ids(row: TraceRow) -> tuple[int, ...]:
    def are_ids(value: Any) -> bool:
        return isinstance(value, list) and all(
            isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in value
        )

    if row.fields.get("hash_ids") is None:
        return ()
    return tuple(row.read("hash_ids", are_ids, "a list of ids of at least 0"))


def _has_json_keys(head: TraceFile, keys: tuple[str, ...]) -> bool:
    if not head.is_json:
        return False
    try:
        return set(keys) <= set(next(head.json_rows()).fields)
    except TraceError:
        return False
