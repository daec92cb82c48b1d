"""Energy of a run: joules that its devices took between two readings of their counters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Stored beside the numbers, as METRIC_IDS of measurements are.
ENERGY_IDS = {
    "joules_per_output_token": "energy.v1",
    "joules_per_total_token": "energy.total.v1",
}


@dataclass(frozen=True, kw_only=True)
class EnergyUse:
    """Joules of ``num_devices`` devices in ``seconds``, idle and busy. Hosts and fans are apart."""

    joules: float
    seconds: float
    num_devices: int

    def per_token(self, num_tokens: int) -> float | None:
        """Joules of each of ``num_tokens``; None for no token."""
        return self.joules / num_tokens if num_tokens else None

    def to_json(self, *, output_tokens: int, total_tokens: int) -> dict[str, Any]:
        """What measurements show; ``total_tokens`` has the prompts' too."""
        return {
            "joules": self.joules,
            "seconds": self.seconds,
            "num_devices": self.num_devices,
            "mean_w": self.joules / self.seconds,
            "joules_per_output_token": self.per_token(output_tokens),
            "joules_per_total_token": self.per_token(total_tokens),
            "is_estimate": False,
            "metric_ids": dict(ENERGY_IDS),
        }


@dataclass(frozen=True, kw_only=True)
class EnergyCounters:
    """Joules of each device, by name, each counted from some start of its own; empty if nobody
    knows."""

    at_s: float = 0.0
    joules: Mapping[str, float] = field(default_factory=dict)

    def until(self, later: EnergyCounters) -> EnergyUse | None:
        """What was used from here to ``later``.

        None unless it is known for every device: without counters, with other devices than before,
        or with a counter that began anew. The sum over some of the devices would be too low.
        """
        if not self.joules or self.joules.keys() != later.joules.keys():
            return None
        used = [later.joules[device] - before for device, before in self.joules.items()]
        if later.at_s <= self.at_s or min(used) < 0:
            return None
        return EnergyUse(
            joules=sum(used), seconds=later.at_s - self.at_s, num_devices=len(self.joules)
        )
