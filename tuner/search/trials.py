"""One trial of a search, as it is stored."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

import msgspec

from engine.spec.errors import EngineError
from engine.spec.measurement import Fidelity
from engine.spec.settings import Settings
from policies.points import (
    EstimateJson,
    OperatingPoint,
    estimates_from_json,
)
from tuner.search.budget import NOT_IN_BUDGET
from tuner.search.costs import Cost
from tuner.spec.errors import TunerError

# The reason of a trial that was cancelled while it ran.
CUT_SHORT = "cancelled half-way"


class TrialState(StrEnum):
    """How a trial ended. ``pruned``: a cheaper fidelity, or the first part of its run, showed that
    it cannot win, or no time was left for it."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """What one trial tried and what came of it.

    ``metrics`` are numbers of ``fidelity`` by SLA word, each with its 90 % interval;
    ``predicted`` what simulation said beforehand. ``sla_probability`` (None for a failed trial)
    goes by ``beliefs`` where there are any (``tuner.search.evidence``), and ``is_feasible`` by
    values and probability (``policies.verdict``). ``document`` is the whole measurement. ``costs``
    are what each level took on the way, the first trial's also a profile before it.
    """

    number: int
    settings: Settings
    fidelity: Fidelity
    state: TrialState
    metrics: EstimateJson
    is_feasible: bool
    reason: str
    seconds: float
    sla_probability: float | None = None
    predicted: EstimateJson = field(default_factory=dict)
    beliefs: EstimateJson = field(default_factory=dict)
    document: dict[str, Any] | None = None
    costs: tuple[Cost, ...] = ()

    @property
    def point(self) -> OperatingPoint | None:
        """The operating point it observed; None for a failed trial."""
        if self.state is TrialState.FAILED:
            return None
        return OperatingPoint(
            settings=self.settings,
            fidelity=self.fidelity,
            metrics=estimates_from_json(self.metrics),
            beliefs=estimates_from_json(self.beliefs),
        )

    @property
    def is_cut_short(self) -> bool:
        """Whether it was cancelled while it ran, so that it counts for nothing."""
        return self.state is TrialState.FAILED and self.reason == CUT_SHORT

    @property
    def is_short_of_budget(self) -> bool:
        """Whether it was not run for want of time."""
        return self.reason.startswith(NOT_IN_BUDGET)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "settings": self.settings.to_json(),
            "costs": [asdict(cost) for cost in self.costs],
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> TrialRecord:
        """Read a record back. Raises TunerError for a part of the wrong kind, named."""
        try:
            settings = raw["settings"]
            if not isinstance(settings, dict):
                raise TunerError(f"trial record: settings {settings!r} is not an object")
            # Settings have a form of their own, which msgspec does not know.
            record = msgspec.convert({**raw, "settings": {}}, cls)
            return replace(record, settings=Settings.from_json(settings))
        except KeyError as missing:
            raise TunerError(f"trial record: {missing} is missing") from missing
        except (msgspec.ValidationError, EngineError) as error:
            raise TunerError(f"trial record: {error}") from error
