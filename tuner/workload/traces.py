"""Readers of request traces. A row that cannot be read is an error with file and line number."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from tuner.spec.errors import TraceError
from tuner.workload.rows import Rows

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MAX_TOKENS = 999_999_999
OWN_COLUMNS = ("arrival_s", "input_tokens", "output_tokens")
_AZURE_STAMP = re.compile(r"(\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2})(\.\d{1,9})?")
# Stamps count as quantised when more than this share of rows repeats the stamp before.
_QUANTISED_SHARE = 0.5


def read_azure(path: Path) -> Rows:
    """Azure LLM 2023 CSV: ``2023-11-16 18:15:46.6805900,374,44`` (seven fractional digits).

    Raises:
        TraceError: the file or a row cannot be read.
    """
    raw = _read_bytes(path)
    lines = list(_csv_lines(path, raw, AZURE_COLUMNS))
    stamps = [line.stamp("TIMESTAMP") for line in lines]
    first_s = min(whole for whole, _ in stamps)
    return _sorted(
        Rows(
            arrival_s=np.array([whole - first_s + part for whole, part in stamps]),
            input_tokens=np.array([ln.tokens("ContextTokens") for ln in lines], dtype=np.int64),
            output_tokens=np.array([ln.tokens("GeneratedTokens") for ln in lines], dtype=np.int64),
            sha256=_sha256(raw),
        )
    )


def read_own(path: Path) -> Rows:
    """Our own ``arrival_s,input_tokens,output_tokens[,prefix_id]``, CSV or (``.jsonl``) JSONL.

    Raises:
        TraceError: the file or a row cannot be read.
    """
    raw = _read_bytes(path)
    is_json = path.suffix in (".jsonl", ".json", ".ndjson")
    lines = list(_json_lines(path, raw) if is_json else _csv_lines(path, raw, OWN_COLUMNS))
    prefixes = tuple(line.prefix for line in lines)
    return _sorted(
        Rows(
            arrival_s=np.array([ln.time("arrival_s") for ln in lines], dtype=np.float64),
            input_tokens=np.array([ln.tokens("input_tokens") for ln in lines], dtype=np.int64),
            output_tokens=np.array([ln.tokens("output_tokens") for ln in lines], dtype=np.int64),
            prefix_ids=prefixes if any(prefixes) else (),
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
class _Line:
    """One row's fields by name, and where it stands."""

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

    def stamp(self, name: str) -> tuple[float, float]:
        """Whole seconds since an epoch, and the fraction beyond them."""
        text = self.read(name, _is_stamp, "a time like 2023-11-16 18:15:46.6805900")
        match = _AZURE_STAMP.fullmatch(text.strip())
        assert match is not None, "the line above has checked it"
        whole = datetime.fromisoformat(f"{match[1]}+00:00").timestamp()
        return whole, float(match[2] or 0.0)

    @property
    def prefix(self) -> str | None:
        """The row's ``prefix_id``; an empty one is none."""
        prefix = self.fields.get("prefix_id")
        return None if prefix is None or prefix == "" else str(prefix)


def _is_time(value: object) -> bool:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return False
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0


def _is_count(value: object) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"\s*0*[1-9]\d{0,8}\s*", value, re.ASCII) is not None
    return isinstance(value, int) and 1 <= value <= MAX_TOKENS


def _is_stamp(value: object) -> bool:
    match = _AZURE_STAMP.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return False
    try:
        datetime.fromisoformat(match[1])
    except ValueError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class _JsonRow:
    arrival_s: float
    input_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...] = ()


def _csv_lines(path: Path, raw: bytes, columns: tuple[str, ...]) -> Iterator[_Line]:
    """Every row as text fields by column, so that errors can show a wrong field as it is."""
    reader = csv.reader(raw.decode("utf-8-sig", errors="replace").splitlines(), strict=True)
    header: list[str] | None = None
    num_rows = 0
    try:
        for fields in reader:
            where = f"{path}: line {reader.line_num}"
            if header is None:
                header = [name.strip() for name in fields]
                missing = [name for name in columns if name not in header]
                if missing:
                    raise TraceError(
                        f"{where}: column {missing[0]!r} is missing; needed are "
                        f"{', '.join(columns)}"
                    )
                continue
            if len(fields) > len(header):
                raise TraceError(f"{where}: {len(fields)} fields, the header has {len(header)}")
            num_rows += 1
            # A row with too few fields shows as an empty value.
            yield _Line(
                where=where,
                fields=dict(zip(header, fields + [""] * (len(header) - len(fields)), strict=True)),
            )
    except csv.Error as error:
        raise TraceError(
            f"{path}: line {reader.line_num}: not readable as CSV ({error})"
        ) from error
    if not num_rows:
        raise TraceError(f"{path}: has a header but no rows" if header else f"{path}: is empty")


def _json_lines(path: Path, raw: bytes) -> Iterator[_Line]:
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
        yield _Line(where=where, fields=fields)


def _mooncake_row(line: _Line) -> _JsonRow:
    def are_ids(value: Any) -> bool:
        return isinstance(value, list) and all(
            isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in value
        )

    hash_ids = (
        line.read("hash_ids", are_ids, "a list of ids of at least 0")
        if "hash_ids" in line.fields
        else ()
    )
    return _JsonRow(
        arrival_s=line.time("timestamp") / 1e3,
        input_tokens=line.tokens("input_length"),
        output_tokens=line.tokens("output_length"),
        hash_ids=tuple(hash_ids),
    )
