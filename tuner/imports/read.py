"""From a file to its runs. Its content, not its name, tells which tool wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from tuner.imports import aiperf, guidellm, vllm_bench
from tuner.imports.run import ImportedRun, ImportFileError, Tool

MOST_BYTES = 2**30
KNOWN = ", ".join(Tool)


def read_runs(path: Path) -> list[ImportedRun]:
    """Every run that the file tells of.

    Raises:
        ImportFileError: a file that cannot be read, that no known tool wrote, or that lacks
            something; with the field.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ImportFileError(f"{path}: larger than {MOST_BYTES >> 20} MiB")
        text = _as_utf8(path.read_bytes())
    except OSError as error:
        raise ImportFileError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ImportFileError(f"{path}: no text ({error.reason})") from error
    documents = _documents(path, text)
    try:
        runs = _runs(documents)
    except (msgspec.ValidationError, ValueError, OverflowError) as error:
        raise ImportFileError(f"{path}: {error}") from error
    if runs is None:
        raise ImportFileError(f"{path}: no result file of a tool known here ({KNOWN})")
    return runs


def _as_utf8(text: bytes) -> bytes:
    """Without the mark at its beginning, and not in UTF-16: as a shell of Windows redirects."""
    encoding = json.detect_encoding(text[:4])
    return text if encoding == "utf-8" else text.decode(encoding).encode()


def _documents(path: Path, text: bytes) -> list[Any]:
    """The JSON documents of a file, one or one a line (``vllm bench serve --append-result``)."""
    try:
        return [msgspec.json.decode(text)]
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        return [msgspec.json.decode(line) for line in text.splitlines() if line.strip()]
    except (msgspec.DecodeError, RecursionError) as error:
        raise ImportFileError(f"{path}: neither JSON nor JSON lines ({error})") from error


def _runs(documents: list[Any]) -> list[ImportedRun] | None:
    if not documents:
        return None
    if all(aiperf.is_record(document) for document in documents):
        return [aiperf.read_records(documents)]
    found: list[ImportedRun] = []
    for document in documents:
        if guidellm.is_report(document):
            found += guidellm.read_report(document)
        elif aiperf.is_summary(document):
            found.append(aiperf.read_summary(document))
        elif vllm_bench.is_result(document):
            found.append(vllm_bench.read_result(document))
        else:
            return None
    return found
