"""Host profiles of serving systems, one small versioned JSON file each beside this module."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.config import Caps
from tuner.errors import TunerError
from tuner.front_end import FrontEnd
from tuner.hardware import Launch

FOLDER = Path(__file__).parent
SCHEMA = "backend/v1"


@dataclass(frozen=True, kw_only=True)
class HostTimes:
    """Host work of one step: ``step_s`` plus ``seq_s`` per sequence.

    ``is_overlapped``: it runs beside the step before, and only what is longer than that is
    waited for; ``exposed_s`` is what no step covers either way.
    """

    step_s: float
    seq_s: float
    is_overlapped: bool
    exposed_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One serving system, as far as time depends on it.

    ``shift_launch`` is how kernels start in shift mode, ``has_second_weights`` whether a Shift
    plan holds the shift mode's weights beside the base mode's.
    """

    name: str
    title: str
    version: int
    source: str
    host: HostTimes
    front_end: FrontEnd
    launch: Launch
    shift_launch: Launch
    has_second_weights: bool
    default_caps: Caps

    @classmethod
    def from_json(cls, raw: dict[str, Any], *, where: str) -> Backend:
        """Read one profile.

        Raises:
            TunerError: another schema, or a missing or unknown key, with its name.
        """
        if raw.get("schema") != SCHEMA:
            raise TunerError(f"{where}: schema {raw.get('schema')!r} is not {SCHEMA!r}")
        values = {key: value for key, value in raw.items() if key != "schema"}
        try:
            values["host"] = HostTimes(**values["host"])
            values["front_end"] = FrontEnd(**values["front_end"])
            values["launch"] = Launch(values["launch"])
            values["shift_launch"] = Launch(values["shift_launch"])
            values["default_caps"] = Caps(**values["default_caps"])
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise TunerError(f"{where}: {error}") from error


def list_backends() -> list[str]:
    """Names of the backends that have a profile."""
    return sorted(file.stem for file in FOLDER.glob("*.json"))


def load_backend(name: str) -> Backend:
    """The profile of ``name``.

    Raises:
        TunerError: no such backend, with the known ones.
    """
    if name not in list_backends():
        raise TunerError(f"backend {name!r} is not known; known are {', '.join(list_backends())}")
    path = FOLDER / f"{name}.json"
    return Backend.from_json(json.loads(path.read_text()), where=path.name)
