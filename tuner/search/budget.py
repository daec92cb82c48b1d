"""Time that a job may use, of its devices or by the clock, and how much of it is left.

``FINAL_SHARE`` of it is kept for measuring the best again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from policies.numbers import short
from tuner.search.costs import Cost, Spent
from tuner.spec.errors import TunerError

UNITS_S = {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0}
OF_DEVICES = "device_"
MOST_S = 1e10
FINAL_SHARE = 1 / 3
# The reasons of trials that did not run for want of time begin with this.
NOT_IN_BUDGET = "not run: the budget"


@dataclass(frozen=True, kw_only=True)
class TimeBudget:
    """A number of seconds: of devices, one for that long or several for less, or by the clock, on
    which simulation counts, too."""

    seconds: float
    is_of_devices: bool

    @classmethod
    def parse(cls, text: str) -> TimeBudget:
        """Read ``device_minutes=30`` or ``minutes=5``; seconds and hours alike.

        Raises:
            TunerError: another form, or a number that is not above 0.
        """
        name, _, number = text.strip().partition("=")
        unit = name.strip()
        unit_s = UNITS_S.get(unit.removeprefix(OF_DEVICES))
        try:
            seconds = float(number) * unit_s if unit_s is not None else math.nan
        except ValueError:
            seconds = math.nan
        if not 0 < seconds <= MOST_S:
            known = ", ".join([*(f"{OF_DEVICES}{name}" for name in UNITS_S), *UNITS_S])
            raise TunerError(
                f"budget {text!r}: not of the form device_minutes=30 or minutes=5; known: {known}, "
                f"each above 0 and up to {MOST_S:g} seconds"
            )
        return cls(seconds=seconds, is_of_devices=unit.startswith(OF_DEVICES))

    @property
    def for_trials_s(self) -> float:
        """Seconds that trials may use."""
        return self.seconds * (1 - FINAL_SHARE)

    @property
    def unit(self) -> str:
        return "device seconds" if self.is_of_devices else "seconds"

    def held_s(self, seconds: float, num_devices: int) -> float:
        """What it takes of the budget to hold so many devices for so long."""
        return seconds * num_devices if self.is_of_devices else seconds

    def clock_s(self, num_devices: int) -> float:
        """About how long it lasts by the clock, where as many devices are held all the time."""
        return self.seconds / num_devices if self.is_of_devices else self.seconds

    def taken_s(self, cost: Cost | Spent) -> float:
        """What it has taken of the budget."""
        return cost.device_seconds if self.is_of_devices else cost.seconds

    def why_not(self, left_s: float, needed_s: float) -> str | None:
        """Why a run that needs ``needed_s`` of it is not started; None if it fits."""
        if needed_s <= left_s:
            return None
        left = short(max(0.0, left_s))
        return f"{NOT_IN_BUDGET} has {left} {self.unit} left and it needs {short(needed_s)}"

    def used_json(self, used_s: float) -> dict[str, Any]:
        """How much there was, and how much was used."""
        key = self.unit.replace(" ", "_")
        return {key: self.seconds, f"used_{key}": used_s}


def used_text(document: dict[str, Any]) -> str:
    """The budget of a report in one line."""
    key = "device_seconds" if "device_seconds" in document else "seconds"
    used, whole = short(document[f"used_{key}"]), short(document[key])
    return f"budget {document['asked']}: {used} of {whole} {key.replace('_', ' ')} used"
