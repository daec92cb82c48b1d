"""The stream of events of a job or a rollout (server-sent events), read line by line."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from engine.spec.settings import Settings

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class JobEvent:
    """One event of the stream of a job or a rollout."""

    seq: int
    type: str
    data: Json

    @property
    def told(self) -> str:
        """The event in one line."""
        data = self.data
        if self.type == "trial":
            settings, chance = Settings.from_json(data["settings"]), data["sla_probability"]
            met = "" if chance is None else f", P(met) {chance:.2f}"
            return f"{data['number']} {settings} {data['fidelity']}{met}: {data['reason']}"
        if self.type == "pair":
            effect = data["effect"]
            return (
                f"pair {data['pair']}: SLA attainment: candidate "
                f"{data['candidate_attainment']:.3f}, control {data['control_attainment']:.3f}; "
                f"difference between {effect['low']:+.3f} and {effect['high']:+.3f}"
            )
        return str(data.get("message") or data.get("reason") or data.get("state") or "")


@dataclass
class EventReader:
    """Makes events of lines; comments and half an event at the end are dropped."""

    _fields: dict[str, str] = field(default_factory=dict)

    def take(self, line: str) -> JobEvent | None:
        """The event that ``line`` ends, None where it ends none."""
        if line.startswith(":"):
            return None
        if line:
            name, _, value = line.partition(": ")
            self._fields[name] = value
            return None
        fields, self._fields = self._fields, {}
        if not fields:
            return None
        return JobEvent(
            seq=int(fields["id"]), type=fields["event"], data=json.loads(fields["data"])
        )
