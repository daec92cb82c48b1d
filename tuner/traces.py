"""Readers of request traces. A row that cannot be read is an error with file and line number.

pandas is imported inside the functions: the simulator imports this package without it.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tuner.arrivals import FloatArray, IntArray
from tuner.errors import TraceError
from tuner.rows import Rows

if TYPE_CHECKING:
    import pandas as pd

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
OWN_COLUMNS = ("arrival_s", "input_tokens", "output_tokens")
_AZURE_STAMP = r"\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2}(?:\.\d{1,9})?"
# Stamps count as quantised when more than this share of rows repeats the stamp before.
_QUANTISED_SHARE = 0.5


def read_azure(path: Path) -> Rows:
    """Azure LLM 2023 CSV: ``2023-11-16 18:15:46.6805900,374,44`` (seven fractional digits).

    Raises:
        TraceError: the file or a row cannot be read.
    """
    import pandas as pd

    raw, frame = _read_csv(path, AZURE_COLUMNS)
    text = frame["TIMESTAMP"]
    stamps = pd.to_datetime(text.where(text.str.fullmatch(_AZURE_STAMP)), errors="coerce")
    _refuse(path, text, stamps.isna(), "TIMESTAMP", "a time like 2023-11-16 18:15:46.6805900")
    arrival_s = np.asarray((stamps - stamps.min()).dt.total_seconds(), dtype=np.float64)
    return _sorted(
        Rows(
            arrival_s=arrival_s,
            input_tokens=_token_column(path, frame, "ContextTokens"),
            output_tokens=_token_column(path, frame, "GeneratedTokens"),
            sha256=_sha256(raw),
        )
    )


def read_own(path: Path) -> Rows:
    """Our own ``arrival_s,input_tokens,output_tokens[,prefix_id]``, CSV or (``.jsonl``) JSONL.

    Raises:
        TraceError: the file or a row cannot be read.
    """
    if path.suffix in (".jsonl", ".json", ".ndjson"):
        return _read_own_jsonl(path)
    raw, frame = _read_csv(path, OWN_COLUMNS)
    prefixes: tuple[str | None, ...] = ()
    if "prefix_id" in frame:
        prefixes = tuple(p if isinstance(p, str) and p else None for p in frame["prefix_id"])
    return _sorted(
        Rows(
            arrival_s=_time_column(path, frame, "arrival_s"),
            input_tokens=_token_column(path, frame, "input_tokens"),
            output_tokens=_token_column(path, frame, "output_tokens"),
            prefix_ids=prefixes,
            sha256=_sha256(raw),
        )
    )


def read_mooncake(path: Path, *, seed: int) -> Rows:
    """Mooncake JSONL: ``timestamp`` (ms), ``input_length``, ``output_length``, ``hash_ids``.

    Where stamps are quantised (3 s in the public slice), arrivals are spread inside their bin,
    in file order, by ``seed``; ``spread_s`` of the rows then tells the usual bin width.

    Raises:
        TraceError: the file or a row cannot be read.
    """
    raw = _read_bytes(path)
    read = [_mooncake_row(line) for line in _json_lines(path, raw)]
    rows = _sorted(
        Rows(
            arrival_s=np.array([row.arrival_s for row in read], dtype=np.float64),
            input_tokens=np.array([row.input_tokens for row in read], dtype=np.int64),
            output_tokens=np.array([row.output_tokens for row in read], dtype=np.int64),
            hash_ids=tuple(row.hash_ids for row in read),
            sha256=_sha256(raw),
        )
    )
    return spread_quantised(rows, np.random.default_rng([seed, 0x3EC]))


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


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror or error})") from error


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _read_csv(path: Path, columns: tuple[str, ...]) -> tuple[bytes, pd.DataFrame]:
    """All columns as text, so that what cannot be converted can be shown with its line."""
    import pandas as pd

    raw = _read_bytes(path)
    try:
        frame = pd.read_csv(
            io.BytesIO(raw),
            dtype=str,
            keep_default_na=False,
            skip_blank_lines=False,
            index_col=False,
            encoding="utf-8-sig",
        )
    except (ValueError, pd.errors.ParserError, pd.errors.ParserWarning) as error:
        # pandas names the line of a row with too many fields itself.
        raise TraceError(f"{path}: cannot be read as CSV ({str(error).strip()})") from error
    missing = [c for c in columns if c not in frame.columns]
    if missing:
        raise TraceError(
            f"{path}: line 1: column {missing[0]!r} is missing; needed are {', '.join(columns)}"
        )
    if frame.empty:
        raise TraceError(f"{path}: has a header but no rows")
    return raw, frame.fillna("")


def _refuse(
    path: Path, text: pd.Series[str], is_bad: pd.Series[bool], name: str, what: str
) -> None:
    if is_bad.any():
        row = int(np.argmax(is_bad.to_numpy()))
        # Line 1 is the header; a row with too few fields shows as an empty value.
        raise TraceError(f"{path}: line {row + 2}: {name} {text.iloc[row]!r} is not {what}")


def _token_column(path: Path, frame: pd.DataFrame, name: str) -> IntArray:
    text = frame[name].str.strip()
    is_bad = ~text.str.fullmatch(r"\d{1,9}") | text.str.fullmatch(r"0+")
    _refuse(path, frame[name], is_bad, name, "a whole number of at least 1")
    return np.asarray(text.astype(np.int64), dtype=np.int64)


def _time_column(path: Path, frame: pd.DataFrame, name: str) -> FloatArray:
    import pandas as pd

    values = pd.to_numeric(frame[name], errors="coerce")
    is_bad = ~np.isfinite(values) | (values < 0)
    _refuse(path, frame[name], is_bad, name, "a number of seconds of at least 0")
    return np.asarray(values, dtype=np.float64)


def _sorted(rows: Rows) -> Rows:
    """In order of arrival (rows of equal time keep the file's order), the first at time 0."""
    order = np.argsort(rows.arrival_s, kind="stable")
    return replace(
        rows,
        arrival_s=rows.arrival_s[order] - rows.arrival_s[order[0]],
        input_tokens=rows.input_tokens[order],
        output_tokens=rows.output_tokens[order],
        prefix_ids=tuple(rows.prefix_ids[i] for i in order) if rows.prefix_ids else (),
        hash_ids=tuple(rows.hash_ids[i] for i in order) if rows.hash_ids else (),
    )


@dataclass(frozen=True, kw_only=True)
class _JsonLine:
    """One parsed line and where it stands."""

    where: str
    fields: dict[str, Any]

    def read(self, name: str, is_fine: Callable[[Any], bool], what: str) -> Any:
        if name not in self.fields:
            raise TraceError(f"{self.where}: {name!r} is missing")
        value = self.fields[name]
        if isinstance(value, bool) or not is_fine(value):
            raise TraceError(f"{self.where}: {name} {value!r} is not {what}")
        return value

    def time(self, name: str) -> float:
        return float(self.read(name, _is_time, "a number of at least 0"))

    def tokens(self, name: str) -> int:
        return int(self.read(name, _is_count, "a whole number of at least 1"))


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 1


@dataclass(frozen=True, kw_only=True)
class _JsonRow:
    arrival_s: float
    input_tokens: int
    output_tokens: int
    prefix_id: str | None = None
    hash_ids: tuple[int, ...] = ()


def _json_lines(path: Path, raw: bytes) -> Iterator[_JsonLine]:
    lines = raw.decode("utf-8-sig", errors="replace").splitlines()
    if not lines:
        raise TraceError(f"{path}: is empty")
    for number, text in enumerate(lines, start=1):
        where = f"{path}: line {number}"
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise TraceError(f"{where}: not readable as JSON ({error})") from error
        if not isinstance(fields, dict):
            raise TraceError(f"{where}: {text[:40]!r} is not an object")
        yield _JsonLine(where=where, fields=fields)


def _mooncake_row(line: _JsonLine) -> _JsonRow:
    def are_ids(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(v, int) for v in value)

    hash_ids = line.read("hash_ids", are_ids, "a list of ids") if "hash_ids" in line.fields else ()
    return _JsonRow(
        arrival_s=line.time("timestamp") / 1e3,
        input_tokens=line.tokens("input_length"),
        output_tokens=line.tokens("output_length"),
        hash_ids=tuple(hash_ids),
    )


def _read_own_jsonl(path: Path) -> Rows:
    raw = _read_bytes(path)
    lines = list(_json_lines(path, raw))
    prefixes = tuple(None if (p := ln.fields.get("prefix_id")) is None else str(p) for ln in lines)
    return _sorted(
        Rows(
            arrival_s=np.array([ln.time("arrival_s") for ln in lines], dtype=np.float64),
            input_tokens=np.array([ln.tokens("input_tokens") for ln in lines], dtype=np.int64),
            output_tokens=np.array([ln.tokens("output_tokens") for ln in lines], dtype=np.int64),
            prefix_ids=prefixes if any(prefixes) else (),
            sha256=_sha256(raw),
        )
    )
