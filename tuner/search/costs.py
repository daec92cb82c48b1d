"""What each level of a search took: seconds, and device seconds where devices were held for it.

Arithmetic and simulation hold none. A live run holds the devices of its plan from the start of its
engine or server to the end of its load, the warm-up included. A profile holds all devices that it
profiles.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from engine.spec.measurement import Fidelity

# The event that tells the costs after the last trial; trials keep their own.
SPENT = "spent"


class Level(StrEnum):
    """Where seconds went: to measuring the machine for its step model, or to one fidelity."""

    PROFILED = "profiled"
    PREDICTED = Fidelity.PREDICTED.value
    SIMULATED = Fidelity.SIMULATED.value
    PROBED = Fidelity.PROBED.value
    MEASURED = Fidelity.MEASURED.value


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one run of a level took. The load ran for ``load_s`` of a live run's seconds; the rest
    went to starting and warming up."""

    level: Level
    seconds: float
    device_seconds: float = 0.0
    load_s: float = 0.0

    @property
    def is_live(self) -> bool:
        return self.level in (Level.PROBED, Level.MEASURED)


@dataclass(kw_only=True)
class Meter:
    """Collects costs, in the order in which they came up."""

    costs: list[Cost] = field(default_factory=list)

    @contextmanager
    def timing(self, level: Level, *, num_devices: int = 0) -> Iterator[None]:
        """Time what is done inside, even if it fails: its devices were held all the same."""
        started_s = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - started_s
            self.costs.append(
                Cost(level=level, seconds=seconds, device_seconds=seconds * num_devices)
            )

    def taken(self) -> tuple[Cost, ...]:
        """What has come up since the last call."""
        found, self.costs = tuple(self.costs), []
        return found


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What earlier calls, which were cut off, took after the last trial."""

    seconds: float = 0.0
    device_seconds: float = 0.0


NOTHING_SPENT = Spent()


def device_seconds(costs: Iterable[Cost]) -> float:
    return sum(cost.device_seconds for cost in costs)


def costs_json(costs: Iterable[Cost]) -> list[dict[str, Any]]:
    """Each level that came up: how many runs, and what they took together."""
    every = list(costs)
    return [
        {
            "level": level.value,
            "runs": len(own),
            "seconds": sum(cost.seconds for cost in own),
            "device_seconds": device_seconds(own),
        }
        for level in Level
        if (own := [cost for cost in every if cost.level is level])
    ]
