"""One trial of a search, as it is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

from engine.spec.measurement import Fidelity
from engine.spec.plan import parse_plan
from engine.spec.settings import Caps
from policies.points import (
    Estimate,
    EstimateJson,
    OperatingPoint,
    estimates_from_json,
)
from tuner.spec.errors import TunerError
from tuner.spec.space import Settings


class TrialState(StrEnum):
    """How a trial ended. ``pruned``: a cheaper fidelity already showed it cannot win."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """What one trial tried and what came of it.

    ``metrics`` are numbers of ``fidelity`` by SLA word, each with its 90 % interval;
    ``predicted`` what simulation said beforehand. ``document`` is the whole measurement.
    """

    number: int
    plan: str
    threshold_tokens: int
    caps: dict[str, Any]
    fidelity: Fidelity
    state: TrialState
    metrics: EstimateJson
    is_feasible: bool
    reason: str
    seconds: float
    predicted: EstimateJson = field(default_factory=dict)
    document: dict[str, Any] | None = None

    @property
    def settings(self) -> Settings:
        return Settings(
            plan=parse_plan(self.plan).plan,
            threshold_tokens=self.threshold_tokens,
            caps=Caps(**self.caps),
        )

    @property
    def point(self) -> OperatingPoint | None:
        """The operating point it observed; None for a failed trial."""
        if self.state is TrialState.FAILED:
            return None
        return operating_point(self.settings, self.fidelity, estimates_from_json(self.metrics))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> TrialRecord:
        """Read a record back. Raises TunerError for a part of the wrong kind, named."""
        try:
            return msgspec.convert(raw, cls)
        except msgspec.ValidationError as error:
            raise TunerError(f"trial record: {error}") from error


def operating_point(
    settings: Settings, fidelity: Fidelity, metrics: Mapping[str, Estimate]
) -> OperatingPoint:
    """The point of ``settings`` with these numbers."""
    return OperatingPoint(
        plan=settings.plan,
        threshold_tokens=settings.threshold_tokens,
        caps=settings.caps,
        fidelity=fidelity,
        metrics=metrics,
        cost_devices=settings.plan.world_size,
    )
