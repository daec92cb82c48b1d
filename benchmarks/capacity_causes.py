"""Where the slow loop's device hours go that an oracle does not take, cause by cause.

Devices over time, between the oracle's and the loop's, in five steps; each step's difference is one
cause's, so that they add up to the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from policies.capacity_state import HOUR_S
from policies.capacity_table import CapacityTable, cheapest
from policies.load_history import SLOT_S
from tuner.simulation.log import DeviceSpell
from tuner.simulation.steering_capacity import CapacityTurn

Devices = npt.NDArray[np.float64]
# A number of devices from each of these seconds on, ascending; the first is 0.
Held = list[tuple[float, int]]

# Devices are compared every so many seconds.
STEP_S = 5.0
CAUSES = {
    "oracle's share": "the table's entry for each minute's rate, less what the oracle holds",
    "forecast": "the forecast without a margin, less the entry for what came",
    "margin": "what the loop asks for (margin, correction, a rise heard, a queue), less the "
    "forecast without one",
    "kept": "devices that were not asked for any more, but kept: dwell, patience, guards, the "
    "next look",
    "late": "devices that were asked for and did not serve yet (hours saved)",
    "starts": "devices that start or finish what they have, less those of the oracle",
}


class Changed(Protocol):
    """A change that a run saw."""

    @property
    def in_force_s(self) -> float: ...
    @property
    def change(self) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Paths:
    """Devices in use, and those that serve; what the loop asked for, and what its forecast would
    have without a margin (of the slow loop only)."""

    in_use: Held
    serving: Held
    asked: Held | None = None
    forecast: Held | None = None

    @classmethod
    def of(
        cls,
        spells: Iterable[DeviceSpell],
        start_devices: int,
        changes: Iterable[Changed],
        turns: Sequence[CapacityTurn],
        table: CapacityTable,
    ) -> Paths:
        """Of a run that began with ``start_devices``."""
        serving = [(c.in_force_s, c.change.settings.plan.world_size) for c in changes]
        told = [t for t in turns if t.decision.needed_rps is not None and t.forecast is not None]
        return cls(
            in_use=_in_use(spells),
            serving=[(0.0, start_devices), *serving],
            asked=[(t.now_s, _entry(table, t.decision.needed_rps or 0.0)) for t in told] or None,
            forecast=[(t.now_s, _entry(table, _level(t))) for t in told] or None,
        )

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Paths:
        """Read what ``dataclasses.asdict`` made."""
        paths: dict[str, Any] = {
            name: None if path is None else [(at_s, devices) for at_s, devices in path]
            for name, path in document.items()
        }
        return cls(**paths)


def hours_by_cause(
    loop: Paths, oracle: Paths, rates_rps: Devices, table: CapacityTable, end_s: float
) -> dict[str, float]:
    """Device hours of the loop beyond the oracle's, by ``CAUSES``; ``rates_rps`` by the minute."""
    at = np.arange(0.0, end_s, STEP_S) + STEP_S / 2
    entries = np.array([_entry(table, rate) for rate in rates_rps], dtype=np.float64)
    came = entries[np.minimum((at // SLOT_S).astype(int), len(entries) - 1)]
    serving, oracle_serving = _at(loop.serving, at), _at(oracle.serving, at)
    asked = serving if loop.asked is None else _at(loop.asked, at)
    forecast = asked if loop.forecast is None else _at(loop.forecast, at)
    over_h = STEP_S / HOUR_S
    found = {
        "oracle's share": came - oracle_serving,
        "forecast": forecast - came,
        "margin": asked - forecast,
        "kept": np.maximum(serving - asked, 0),
        "late": np.minimum(serving - asked, 0),
        "starts": (_at(loop.in_use, at) - serving) - (_at(oracle.in_use, at) - oracle_serving),
    }
    return {cause: float(np.sum(devices)) * over_h for cause, devices in found.items()}


def _level(turn: CapacityTurn) -> float:
    assert turn.forecast is not None, "told by a forecast"
    return float(np.max(turn.forecast.rates_rps))


def _entry(table: CapacityTable, rate_rps: float) -> int:
    return (cheapest(table, rate_rps) or table.entries[-1]).num_devices


def _in_use(spells: Iterable[DeviceSpell]) -> Held:
    changes: dict[float, int] = {}
    for spell in spells:
        changes[spell.from_s] = changes.get(spell.from_s, 0) + spell.num_devices
        if math.isfinite(spell.to_s):
            changes[spell.to_s] = changes.get(spell.to_s, 0) - spell.num_devices
    path, now = [], 0
    for at_s, more in sorted(changes.items()):
        now += more
        path.append((at_s, now))
    return path


def _at(path: Held, at: Devices) -> Devices:
    """The devices of ``path`` at each moment; before its first, those of the first."""
    times = np.array([at_s for at_s, _ in path])
    devices = np.array([number for _, number in path], dtype=np.float64)
    return devices[np.maximum(np.searchsorted(times, at, side="right") - 1, 0)]
