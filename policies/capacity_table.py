"""The capacity table: the rate that each settings carry within an SLA, cheapest first.

A plain value: the tuner makes it, and whoever decides how many devices a load needs reads it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from engine.spec.errors import EngineError
from engine.spec.measurement import Fidelity
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.constraint import Constraint
from policies.errors import PolicyInputError
from policies.sla import Sla

SCHEMA = "capacity-table/v1"


@dataclass(frozen=True, kw_only=True)
class CarriedRate:
    """The highest rate that ``settings`` carry, with its 90 % interval from ``low_rps`` to
    ``high_rps`` (None: more may be carried than was looked at).

    ``fidelity`` says how it is known: ``measured`` by driving them, or ``simulated`` and never run.
    ``binding`` is the constraint that a higher rate misses first. ``joules_per_request`` is what
    its devices take at that rate; None if nobody knows.

    Raises:
        PolicyInputError: rates that are not above 0 or out of order.
    """

    settings: Settings
    rate_rps: float
    low_rps: float
    high_rps: float | None
    fidelity: Fidelity = Fidelity.SIMULATED
    binding: Constraint | None = None
    joules_per_request: float | None = None

    def __post_init__(self) -> None:
        high = self.rate_rps if self.high_rps is None else self.high_rps
        if not 0 < self.low_rps <= self.rate_rps <= high < math.inf:
            raise PolicyInputError(
                f"capacity of {self.settings}: {self.low_rps} <= {self.rate_rps} <= {high} "
                "requests/s must hold, all above 0"
            )

    @property
    def num_devices(self) -> int:
        """Devices of all its replicas."""
        return self.settings.plan.world_size

    @property
    def num_replicas(self) -> int:
        """Replicas that share the rate."""
        return self.settings.plan.dp

    def to_json(self) -> dict[str, Any]:
        return {
            "settings": self.settings.to_json(),
            "num_devices": self.num_devices,
            "num_replicas": self.num_replicas,
            "rate_rps": self.rate_rps,
            "low_rps": self.low_rps,
            "high_rps": self.high_rps,
            "fidelity": self.fidelity.value,
            "binding": None if self.binding is None else str(self.binding),
            "joules_per_request": self.joules_per_request,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> CarriedRate:
        """The inverse of :meth:`to_json`; rows that say no fidelity were simulated."""
        binding, joules = document.get("binding"), document.get("joules_per_request")
        high = document["high_rps"]
        return cls(
            settings=Settings.from_json(document["settings"]),
            rate_rps=float(document["rate_rps"]),
            low_rps=float(document["low_rps"]),
            high_rps=None if high is None else float(high),
            fidelity=Fidelity(document.get("fidelity", Fidelity.SIMULATED)),
            binding=None if binding is None else Sla.parse(binding).constraints[0],
            joules_per_request=None if joules is None else float(joules),
        )


@dataclass(frozen=True, kw_only=True)
class CapacityTable:
    """Rates of requests with these mean lengths within ``sla``; more devices carry more.

    ``entries`` stand in order of devices, and each carries more than all before it. ``others`` are
    settings that an engine may be on though it should not go there: with as many devices an entry
    carries more.

    Raises:
        PolicyInputError: entries out of order, or mean lengths that are not above 0.
    """

    sla: Sla
    mean_input_tokens: float
    mean_output_tokens: float
    entries: tuple[CarriedRate, ...]
    others: tuple[CarriedRate, ...] = ()

    def __post_init__(self) -> None:
        if not (self.mean_input_tokens > 0 and self.mean_output_tokens > 0):
            raise PolicyInputError("capacity table: mean lengths must be above 0")
        steps = pairwise(self.entries)
        if not all(a.num_devices < b.num_devices and a.rate_rps < b.rate_rps for a, b in steps):
            raise PolicyInputError(
                "capacity table: entries must stand in order of devices, each with a higher rate "
                "than all before it"
            )

    @property
    def mix(self) -> tuple[float, float]:
        """Mean input and output tokens of the requests that the rates count."""
        return (self.mean_input_tokens, self.mean_output_tokens)

    def find(self, plan: ParallelPlan) -> CarriedRate | None:
        """What this plan carries; None: nobody knows."""
        known = (*self.entries, *self.others)
        return next((entry for entry in known if entry.settings.plan == plan), None)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "sla": str(self.sla),
            "mean_input_tokens": self.mean_input_tokens,
            "mean_output_tokens": self.mean_output_tokens,
            "entries": [entry.to_json() for entry in self.entries],
            "others": [entry.to_json() for entry in self.others],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> CapacityTable:
        """Read what :meth:`to_json` wrote.

        Raises:
            PolicyInputError: another document, or a part that cannot be read.
        """
        if document.get("schema") != SCHEMA:
            raise PolicyInputError(
                f"capacity table: schema {document.get('schema')!r} is not {SCHEMA!r}"
            )
        try:
            return cls(
                sla=Sla.parse(document["sla"]),
                mean_input_tokens=float(document["mean_input_tokens"]),
                mean_output_tokens=float(document["mean_output_tokens"]),
                entries=tuple(CarriedRate.from_json(entry) for entry in document["entries"]),
                others=tuple(CarriedRate.from_json(entry) for entry in document.get("others", ())),
            )
        except (AttributeError, LookupError, TypeError, ValueError, EngineError) as error:
            raise PolicyInputError(f"capacity table: cannot be read ({error})") from error


def undominated(entries: Iterable[CarriedRate]) -> tuple[CarriedRate, ...]:
    """The entries that surely carry more than every entry with as many or fewer devices, fewest
    devices first.

    The low ends of their intervals decide: what was never run stands behind what was, unless it
    carries more even at its slowest.
    """
    kept: list[CarriedRate] = []
    for entry in sorted(entries, key=lambda e: (e.num_devices, -e.low_rps, -e.rate_rps)):
        if not kept or (entry.low_rps > kept[-1].low_rps and entry.rate_rps > kept[-1].rate_rps):
            kept.append(entry)
    return tuple(kept)


def cheapest(
    table: CapacityTable, rate_rps: float, *, most_devices: int | None = None
) -> CarriedRate | None:
    """The entry with fewest devices whose low end carries ``rate_rps``; None: none within
    ``most_devices`` does.

    It is the low end and not the rate itself, because at the rate half of all draws would miss the
    SLA.

    Raises:
        PolicyInputError: a rate below 0, or no number.
    """
    if not 0 <= rate_rps < math.inf:
        raise PolicyInputError(f"rate {rate_rps} requests/s: must be at least 0")
    for entry in table.entries:
        if most_devices is not None and entry.num_devices > most_devices:
            return None
        if entry.low_rps >= rate_rps:
            return entry
    return None
