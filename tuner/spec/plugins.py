"""Extension points: what installed packages bring under an entry point of a group of ours."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Any

from tuner.spec.errors import TunerError


@cache
def load_plugins(group: str) -> dict[str, Any]:
    """What packages bring for ``group``, by name, each made by calling what its entry point names.

    Looked for once a process, and only when somebody asks.

    Raises:
        TunerError: one cannot be loaded, or two packages bring one name.
    """
    found: dict[str, Any] = {}
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        where = f"extension {point.name!r} of {group} ({point.value})"
        if point.name in found:
            raise TunerError(f"{where}: another package brings that name too; uninstall one")
        try:
            found[point.name] = point.load()()
        except Exception as error:
            raise TunerError(f"{where} cannot be loaded: {error!r}") from error
    return found
