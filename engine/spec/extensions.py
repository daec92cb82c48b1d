"""Extension points: what installed packages bring under an entry point of a group of ours."""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from engine.spec.errors import EngineError
from engine.spec.names import did_you_mean


class ExtensionPoint(StrEnum):
    """The groups of entry points, each explained in a page under ``docs/how-to``."""

    TRACE_READERS = "gearshift.trace_readers"
    FORECASTERS = "gearshift.forecasters"
    TUNING_TARGETS = "gearshift.tuning_targets"
    EXECUTORS = "gearshift.executors"
    BACKENDS = "gearshift.backends"
    DEVICES = "gearshift.devices"
    LINKS = "gearshift.links"
    MODELS = "gearshift.models"


@cache
def _points(group: ExtensionPoint) -> tuple[EntryPoint, ...]:
    """Looked for once a process, and only when somebody asks."""
    return tuple(sorted(entry_points(group=group), key=lambda point: point.name))


def load_extensions(group: ExtensionPoint, error: type[Exception] = EngineError) -> dict[str, Any]:
    """What entry points of ``group`` name, by the points' names, in their order.

    Raises:
        error: one cannot be loaded, or two packages bring one name.
    """
    found: dict[str, Any] = {}
    for point in _points(group):
        where = f"extension {point.name!r} of {group} ({point.value})"
        if point.name in found:
            raise error(f"{where}: another package brings that name too; uninstall one")
        try:
            found[point.name] = point.load()
        except Exception as cause:
            raise error(f"{where} cannot be loaded: {cause!r}") from cause
    return found


def make_extensions(group: ExtensionPoint, error: type[Exception] = EngineError) -> dict[str, Any]:
    """What :func:`load_extensions` found, each called without an argument.

    Raises:
        error: as there, or one raised when it was called.
    """
    made: dict[str, Any] = {}
    for name, make in load_extensions(group, error).items():
        try:
            made[name] = make()
        except Exception as cause:
            raise error(f"extension {name!r} of {group} cannot be made: {cause!r}") from cause
    return made


def get_extension(group: ExtensionPoint, name: str, error: type[Exception] = EngineError) -> Any:
    """What the entry point ``name`` of ``group`` names.

    Raises:
        error: there is none of that name, with the nearest; or as :func:`load_extensions`.
    """
    found = load_extensions(group, error)
    if name not in found:
        known = f"those installed bring {', '.join(found)}" if found else "none is installed"
        raise error(f"no package brings {name!r} under {group}{did_you_mean(name, found)}; {known}")
    return found[name]
