"""Digests of values and of this software, which tell whether what was kept still holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = ("engine", "policies", "tuner")
# The only library of others that the numbers depend on.
LIBRARY = "numpy"
CACHES = "__pycache__"


def digest(*values: object) -> str:
    """A hash of what ``values`` hold, however deep: equal ones have the same one in any process.

    Of a dataclass, fields that do not count when it is compared do not count here.

    Raises:
        TypeError: a value whose content cannot be told.
    """
    raw = json.dumps([_plain(value) for value in values], sort_keys=True)
    return hashlib.sha256(raw.encode()).hexdigest()


@cache
def software_digest() -> str:
    """A hash of every file that simulates, estimates or searches, and of the library under them.

    A version's number would not do: it stays while one works on the code.
    """
    found = hashlib.sha256(version(LIBRARY).encode())
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*")):
            if CACHES not in path.parts and path.is_file():
                found.update(f"\n{path.relative_to(ROOT)}\n".encode())
                found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def _plain(value: object) -> Any:
    """``value`` as JSON, in one order where it has none."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        content = {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.compare}
        return [type(value).__qualname__, content]
    if isinstance(value, Mapping):
        return _ordered([_plain(key), _plain(part)] for key, part in value.items())
    if isinstance(value, set | frozenset):
        return _ordered(_plain(part) for part in value)
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__qualname__}: its content cannot be told")


def _ordered(parts: Iterable[Any]) -> list[Any]:
    return sorted(parts, key=lambda part: json.dumps(part, sort_keys=True))
