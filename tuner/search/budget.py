"""Device time that a job may use, and how much of it is left.

``FINAL_SHARE`` of it is kept for measuring the best again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from policies.numbers import short
from tuner.spec.errors import TunerError

UNITS_S = {"device_seconds": 1.0, "device_minutes": 60.0, "device_hours": 3600.0}
MAX_DEVICE_S = 1e10
FINAL_SHARE = 1 / 3
# The reasons of trials that did not run for want of device time begin with this.
NOT_IN_BUDGET = "not run: the budget"


@dataclass(frozen=True, kw_only=True)
class DeviceBudget:
    """A number of device seconds: one device for that long, or several for less."""

    device_seconds: float

    @classmethod
    def parse(cls, text: str) -> DeviceBudget:
        """Read ``device_minutes=30``; seconds and hours alike.

        Raises:
            TunerError: another form, or a number that is not above 0.
        """
        name, _, number = text.strip().partition("=")
        unit_s = UNITS_S.get(name.strip())
        try:
            seconds = float(number) * unit_s if unit_s is not None else math.nan
        except ValueError:
            seconds = math.nan
        if not 0 < seconds <= MAX_DEVICE_S:
            raise TunerError(
                f"budget {text!r}: not of the form device_minutes=30; known: {', '.join(UNITS_S)}, "
                f"each above 0 and up to {MAX_DEVICE_S:g} device seconds"
            )
        return cls(device_seconds=seconds)

    @property
    def for_trials_s(self) -> float:
        """Device seconds that trials may use."""
        return self.device_seconds * (1 - FINAL_SHARE)


def why_not_in_budget(left_s: float, needed_s: float) -> str | None:
    """Why a run that needs this many device seconds is not started; None if it fits."""
    if needed_s <= left_s:
        return None
    left = max(0.0, left_s)
    return f"{NOT_IN_BUDGET} has {short(left)} device seconds left and it needs {short(needed_s)}"
