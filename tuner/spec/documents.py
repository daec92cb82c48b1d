"""Descriptions in JSON files as checked values: every mistake names the file and the field."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec

from engine.spec.errors import CheckpointError, EngineError
from engine.spec.names import did_you_mean
from engine.spec.reader import read_json_object
from tuner.spec.errors import TunerError

Described = TypeVar("Described")


def read_file(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``. Raises TunerError where there is none, with the file."""
    try:
        return read_json_object(path)
    except CheckpointError as error:
        raise TunerError(str(error)) from error


def read_document(
    raw: Mapping[str, Any], kind: type[Described], *, schema: str, where: str
) -> Described:
    """``raw`` as a value of the dataclass ``kind``, whose fields are its keys beside ``schema``.

    Raises:
        TunerError: another schema, or a key that is missing, unknown, of the wrong kind or out of
            bounds; with ``where`` and the key.
    """
    if raw.get("schema") != schema:
        raise TunerError(f"{where}: schema {raw.get('schema')!r} is not {schema!r}")
    values = {key: value for key, value in raw.items() if key != "schema"}
    _check_keys(values, kind, where, path="")
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise TunerError(f"{where}: {_with_key_first(str(error))}") from error
    except (TunerError, EngineError) as error:
        raise TunerError(f"{where}: {error}") from error


def check_above_zero(value: Any, *names: str) -> None:
    """Raises TunerError where a field of ``value`` is not above 0 and finite."""
    for name in names:
        if not 0 < getattr(value, name) < math.inf:
            raise TunerError(f"{name}={getattr(value, name):g}: must be above 0")


def check_not_negative(value: Any, *names: str) -> None:
    """Raises TunerError where a field of ``value`` is below 0 or not finite."""
    for name in names:
        if not 0 <= getattr(value, name) < math.inf:
            raise TunerError(f"{name}={getattr(value, name):g}: must be at least 0")


def check_shares(value: Any, *names: str) -> None:
    """Raises TunerError where a field of ``value`` is no share of a whole: above 0, at most 1."""
    for name in names:
        if not 0 < getattr(value, name) <= 1:
            raise TunerError(f"{name}={getattr(value, name):g}: must be above 0 and at most 1")


def _check_keys(raw: Mapping[str, Any], kind: Any, where: str, *, path: str) -> None:
    known = [field.name for field in fields(kind)]
    for key in raw:
        if key not in known:
            raise TunerError(f"{where}: unknown key {path + key!r}{did_you_mean(key, known)}")
    for key, hint in get_type_hints(kind).items():
        inner = next((option for option in (hint, *get_args(hint)) if is_dataclass(option)), None)
        if inner is not None and isinstance(raw.get(key), dict):
            _check_keys(raw[key], inner, where, path=f"{path}{key}.")


def _with_key_first(message: str) -> str:
    """``power.idle_w: Expected `float`, got `str``` where msgspec puts the path last."""
    found = re.fullmatch(r"(.*?)(?: - at `\$\.(.*)`)?", message, re.DOTALL)
    text, path = (message, None) if found is None else (found[1], found[2])
    missing = re.fullmatch(r"Object missing required field `(.*)`", text)
    if missing is not None:
        key = missing[1] if path is None else f"{path}.{missing[1]}"
        return f"key {key!r} is missing"
    return text if path is None else f"{path}: {text}"
