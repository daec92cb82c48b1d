"""A trace file and its rows as fields by name, each with the line it stands on."""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tuner.spec.errors import TraceError
from tuner.workload.bounds import MAX_LENGTH_TOKENS, MAX_TRACE_BYTES

# How much of a file is read to recognise its format, and of a trace that is only checked.
HEAD_BYTES = 64 * 1024
# A prompt of ten million tokens has 20,000 ids of blocks.
LONGEST_LINE_BYTES = 4 * 2**20
PIECE_BYTES = 2**20
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# Unix times fit, in seconds and in milliseconds.
MAX_TIME = 1e14
_COUNT = re.compile(r"\s*0*(\d{1,8})(\.0*)?\s*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class TraceFile:
    """The bytes of a trace, or only its first lines."""

    path: Path
    raw: bytes = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> TraceFile:
        """The whole file.

        Raises:
            TraceError: it cannot be read, or is larger than a trace may be.
        """
        raw = _read(path, MAX_TRACE_BYTES + 1)
        if len(raw) > MAX_TRACE_BYTES:
            raise TraceError(f"{path}: is larger than {MAX_TRACE_BYTES} bytes; cut it into parts")
        return cls(path=path, raw=raw)

    @classmethod
    def open_head(cls, path: Path) -> TraceFile:
        """Its first whole lines.

        Raises:
            TraceError: it cannot be read, or is no regular file: a pipe would not end.
        """
        try:
            is_other = path.exists() and not path.is_file()
        except OSError as error:
            raise TraceError(f"{path}: cannot be read ({error.strerror or error})") from error
        if is_other:
            raise TraceError(f"{path}: is no regular file")
        raw = _read(path, HEAD_BYTES + 1)
        if len(raw) > HEAD_BYTES and b"\n" not in raw:
            raw = _read(path, LONGEST_LINE_BYTES)
        return cls(path=path, raw=raw).head

    @property
    def head(self) -> TraceFile:
        """Its first whole lines, at least one; all of a small file."""
        if len(self.raw) <= HEAD_BYTES:
            return self
        end = self.raw.rfind(b"\n", 0, HEAD_BYTES) + 1 or self.raw.find(b"\n") + 1
        return TraceFile(path=self.path, raw=self.raw[: end or len(self.raw)])

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.raw).hexdigest()

    @cached_property
    def lines(self) -> list[str]:
        """Its lines, without blank ones at the end.

        Only a line feed ends a line: texts may hold other separators, as U+2028.
        """
        lines = self.raw.decode("utf-8-sig", errors="replace").split("\n")
        while lines and not lines[-1].strip():
            lines.pop()
        return lines

    @property
    def is_json(self) -> bool:
        """Whether its first line begins as a JSON object does."""
        return bool(self.lines) and self.lines[0].lstrip().startswith("{")

    @property
    def columns(self) -> tuple[str, ...]:
        """The names in its first line, read as a CSV header; none where it is no header."""
        try:
            return tuple(name.strip() for name in next(csv.reader(self.lines[:1], strict=True)))
        except (csv.Error, StopIteration):
            return ()

    def csv_rows(self, needed: tuple[str, ...]) -> Iterator[TraceRow]:
        """Every row as texts by column, so that what cannot be converted is shown as it is.

        Raises:
            TraceError: a needed column is missing, or a row that is no CSV.
        """
        reader = csv.reader((f"{line}\n" for line in self.lines), strict=True)
        header: list[str] | None = None
        num_rows = 0
        try:
            for fields in reader:
                where = f"{self.path}: line {reader.line_num}"
                if header is None:
                    header = [name.strip() for name in fields]
                    missing = [name for name in needed if name not in header]
                    if missing:
                        raise TraceError(
                            f"{where}: column {missing[0]!r} is missing; needed are "
                            f"{', '.join(needed)}"
                        )
                    if twice := [name for name in needed if header.count(name) > 1]:
                        raise TraceError(f"{where}: column {twice[0]!r} stands there twice")
                    continue
                if len(fields) > len(header):
                    raise TraceError(f"{where}: {len(fields)} fields, the header has {len(header)}")
                num_rows += 1
                # A row with too few fields shows as an empty value.
                padded = fields + [""] * (len(header) - len(fields))
                yield TraceRow(where=where, fields=dict(zip(header, padded, strict=True)))
        except csv.Error as error:
            raise TraceError(
                f"{self.path}: line {reader.line_num}: not readable as CSV ({error})"
            ) from error
        if not num_rows:
            raise TraceError(
                f"{self.path}: has a header but no rows" if header else f"{self.path}: is empty"
            )

    def json_rows(self) -> Iterator[TraceRow]:
        """Every line as a JSON object.

        Raises:
            TraceError: a line that is none.
        """
        if not self.lines:
            raise TraceError(f"{self.path}: is empty")
        for number, text in enumerate(self.lines, start=1):
            where = f"{self.path}: line {number}"
            try:
                fields = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise TraceError(f"{where}: not readable as JSON ({error})") from error
            if not isinstance(fields, dict):
                raise TraceError(f"{where}: {text[:40]!r} is not an object")
            yield TraceRow(where=where, fields=fields)


@dataclass(frozen=True, kw_only=True)
class TraceRow:
    """One row's fields by name, and where it stands. Every reading raises TraceError."""

    where: str
    fields: dict[str, Any]

    def read(self, name: str, is_fine: Callable[[Any], bool], what: str) -> Any:
        if name not in self.fields:
            raise TraceError(f"{self.where}: {name!r} is missing")
        value = self.fields[name]
        if isinstance(value, bool) or not is_fine(value):
            shown = repr(value)
            if len(shown) > 60:
                shown = f"{shown[:60]}..."
            raise TraceError(f"{self.where}: {name} {shown} is not {what}")
        return value

    def number(self, name: str) -> float:
        """A time or a rate."""
        what = f"a number from 0 to {MAX_TIME:g}"
        return float(self.read(name, _is_number, what))

    def tokens(self, name: str, *, least: int = 1) -> int:
        """A count, also when written as ``10.0``."""
        what = f"a whole number from {least} to {MAX_LENGTH_TOKENS}"
        return int(float(self.read(name, lambda value: _is_count(value, least), what)))

    def find_text(self, name: str) -> str | None:
        """A text or number as text; an empty or missing one is none."""
        value = self.fields.get(name)
        if value is None or value == "":
            return None
        text = str(self.read(name, lambda v: isinstance(v, str | int | float), "a text or number"))
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TraceError(
                f"{self.where}: {name} {text[:40]!r} holds half a character"
            ) from error
        return text


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as stream:
            # In pieces: one read of so many bytes takes the memory of all of them first.
            raw = bytearray()
            while len(raw) < limit and (piece := stream.read(min(PIECE_BYTES, limit - len(raw)))):
                raw += piece
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TraceError(f"{path}: cannot be read ({reason})") from error
    if raw.startswith(UTF_16):
        raise TraceError(
            f"{path}: is UTF-16, as a shell of Windows redirects; write it as UTF-8 "
            "(in PowerShell: Out-File -Encoding utf8)"
        )
    return bytes(raw)


def _is_number(value: object) -> bool:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return False
    # Compared before converted: a JSON integer may be larger than any float.
    return isinstance(value, int | float) and 0 <= value <= MAX_TIME


def _is_count(value: object, least: int) -> bool:
    if isinstance(value, str):
        match = _COUNT.fullmatch(value)
        return match is not None and least <= int(match[1]) <= MAX_LENGTH_TOKENS
    if isinstance(value, float) and not (math.isfinite(value) and value.is_integer()):
        return False
    return isinstance(value, int | float) and least <= value <= MAX_LENGTH_TOKENS
