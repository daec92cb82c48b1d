"""What the steps of live trials say of the cost model: whether it has drifted, and its refit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.spec.steps import StepSample
from tuner.drift import Drift, DriftAlarm
from tuner.search.context import TuningContext
from tuner.step_model.files import save_cost_model
from tuner.step_model.model import StepModel
from tuner.step_model.refit import LEAST_SAMPLES, Change, Refit, refit, step_seconds
from tuner.step_model.training_rows import usable


@dataclass(frozen=True, kw_only=True)
class StepsSeen:
    """``drift`` None: steps took as long as predicted; ``refit`` None: there were too few.
    ``drift_left`` is what the refitted model still drifts by."""

    drift: Drift | None
    refit: Refit | None
    drift_left: Drift | None = None

    @property
    def warning(self) -> str | None:
        """What to do about a drift; None where there is none."""
        if self.drift is None:
            return None
        is_mended = self.refit is not None and self.refit.change is not Change.NOTHING
        if self.refit is None or not is_mended or self.drift_left is not None:
            return f"{self.drift}; profile this machine again ('gearshift profile')"
        name = self.refit.step_model.id
        return f"{self.drift}; the cost model was refitted as {name} (--cost-model {name})"

    def to_json(self) -> dict[str, Any]:
        return {
            "drift": None if self.drift is None else str(self.drift),
            "refit": None if self.refit is None else self.refit.to_json(),
            "drift_left": None if self.drift_left is None else str(self.drift_left),
        }


def steps_seen(context: TuningContext) -> StepsSeen | None:
    """What live trials of our engine say of the job's step model; None if none ran, or if no step
    model guides them. A refit that is better is saved beside other cost models."""
    if context.cost_model is None:
        return None
    samples = usable(context.step_samples)
    if not samples:
        return None
    alarm = DriftAlarm.of(context.cost_model.error)
    drift = _after(alarm, context, context.cost_model, samples)
    if len(samples) < LEAST_SAMPLES:
        return StepsSeen(drift=drift, refit=None)
    found = refit(context.cost_model, context.model, samples)
    if found.change is Change.NOTHING:
        return StepsSeen(drift=drift, refit=found)
    save_cost_model(found.step_model)
    left = _after(alarm.cleared(), context, found.step_model, samples)
    return StepsSeen(drift=drift, refit=found, drift_left=left)


def _after(
    alarm: DriftAlarm, context: TuningContext, step_model: StepModel, samples: list[StepSample]
) -> Drift | None:
    for predicted_s, measured_s in step_seconds(step_model, context.model, samples):
        alarm = alarm.after(predicted_s, measured_s)
    return alarm.drift
