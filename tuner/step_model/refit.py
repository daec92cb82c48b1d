"""A step model taken further by live steps, without the profile that it was fitted on.

Two changes are tried: all steps by one factor (clocks, heat, neighbours), and on top of it the
coefficients, pulled towards those they have as if ``PRIOR_WEIGHT`` of the steps said so. Both are
fitted on the earlier steps and judged on the later ones, which neither has seen; the model with the
least error there is kept, and that may be the one there was. So a refit of a refit goes on from it,
and steps that say nothing new change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import numpy as np

from engine.spec.model import ModelConfig
from engine.spec.steps import StepSample
from tuner.spec.errors import TunerError
from tuner.step_model.fit import conformal, group_errors, mape
from tuner.step_model.model import StepModel
from tuner.step_model.operator_fit import FloatArray, non_negative_fit
from tuner.step_model.terms import TERM_NAMES
from tuner.step_model.training_rows import RowBuilder, Rows, sample_rows, usable

# With fewer live steps, a model's error is hardly told from their noise.
LEAST_SAMPLES = 60
# The share of the steps, the later ones, that a refit is judged by.
JUDGED_SHARE = 1 / 3
PRIOR_WEIGHT = 0.2
# A change must take this share off the error, or the model stays as it is.
LEAST_GAIN = 0.05


class Change(StrEnum):
    """What a refit changed."""

    NOTHING = "nothing"
    FACTOR = "one factor for all steps"
    COEFFICIENTS = "factor and coefficients"


@dataclass(frozen=True, kw_only=True)
class Refit:
    """``step_model`` is the best found; errors are mean absolute ones of ``num_judged`` later
    steps, before and after."""

    step_model: StepModel
    change: Change
    num_samples: int
    num_judged: int
    error_before: float
    error_after: float

    def __str__(self) -> str:
        steps = f"{self.num_judged} later steps of {self.num_samples}"
        told = f"{steps}: off by {self.error_before:.1%}"
        if self.change is Change.NOTHING:
            return f"{told}, and no refit is better"
        return f"{told} before, {self.error_after:.1%} after ({self.change})"

    def to_json(self) -> dict[str, Any]:
        return {
            "cost_model": self.step_model.id,
            "change": self.change.value,
            "num_samples": self.num_samples,
            "num_judged": self.num_judged,
            "error_before": self.error_before,
            "error_after": self.error_after,
        }


def refit(step_model: StepModel, model: ModelConfig, samples: Sequence[StepSample]) -> Refit:
    """``step_model`` of ``model`` after live steps of plans without pipeline stages.

    Raises:
        TunerError: too few such steps.
    """
    known = sorted(usable(samples), key=lambda sample: sample.start_s)
    if len(known) < LEAST_SAMPLES:
        raise TunerError(
            f"{len(known)} live steps of one-stage plans: a refit takes {LEAST_SAMPLES} or more"
        )
    cut = round(len(known) * (1 - JUDGED_SHARE))
    earlier, later = (_rows(step_model, model, part) for part in (known[:cut], known[cut:]))
    models = {
        Change.NOTHING: step_model,
        Change.FACTOR: (scaled := _scaled(step_model, earlier)),
        Change.COEFFICIENTS: _with_coefficients(scaled, earlier),
    }
    errors = {change: mape(_log_errors(each, later)) for change, each in models.items()}
    change = min(errors, key=lambda change: errors[change])
    if errors[change] > errors[Change.NOTHING] * (1 - LEAST_GAIN):
        change = Change.NOTHING
    found = models[change]
    if change is not Change.NOTHING:
        found = _reported(found, later, known)
    return Refit(
        step_model=found,
        change=change,
        num_samples=len(known),
        num_judged=len(later),
        error_before=errors[Change.NOTHING],
        error_after=errors[change],
    )


def step_seconds(
    step_model: StepModel, model: ModelConfig, samples: Sequence[StepSample]
) -> list[tuple[float, float]]:
    """(predicted, measured) seconds of live steps of one-stage plans, as a drift alarm takes them
    (:class:`tuner.drift.DriftAlarm`), without the delay of an emulated link."""
    rows = _rows(step_model, model, usable(samples))
    predicted = _predicted(step_model, rows)
    return [(float(p), float(m)) for p, m in zip(predicted, rows.seconds, strict=True)]


def _rows(step_model: StepModel, model: ModelConfig, samples: Sequence[StepSample]) -> Rows:
    builder = RowBuilder(step_model.dtype, step_model.link, model, step_model.operators)
    return sample_rows(builder, model, samples)


def _predicted(step_model: StepModel, rows: Rows) -> FloatArray:
    """Seconds on the ranks, as :class:`StepModelTimer` adds them up."""
    rooflines = rows.terms @ _coefficients(step_model)
    residual = step_model.residual
    if residual is None:
        return step_model.serving_factor * rooflines
    logs = np.log(np.maximum(rooflines, 1e-12))
    factors = [
        residual.factor((*row[:4], float(log), *row[5:]))
        for row, log in zip(rows.features, logs, strict=True)
    ]
    return np.asarray(step_model.serving_factor * rooflines * np.array(factors), dtype=np.float64)


def _coefficients(step_model: StepModel) -> FloatArray:
    return np.array([step_model.coefficients[name] for name in TERM_NAMES])


def _log_errors(step_model: StepModel, rows: Rows) -> FloatArray:
    return np.asarray(np.log(rows.seconds / np.maximum(_predicted(step_model, rows), 1e-12)))


def _scaled(step_model: StepModel, rows: Rows) -> StepModel:
    """The model with step times scaled by the median ratio: hiccups are not a new speed."""
    ratio = float(np.exp(np.median(_log_errors(step_model, rows))))
    return replace(step_model, serving_factor=step_model.serving_factor * ratio)


def _with_coefficients(step_model: StepModel, rows: Rows) -> StepModel:
    """Where a residual is active, the coefficients explain what it leaves."""
    prior = _coefficients(step_model)
    rooflines = np.maximum(rows.terms @ prior, 1e-12)
    scale = _predicted(step_model, rows) / rooflines
    found = non_negative_fit(
        rows.terms * scale[:, None], rows.seconds, prior=prior, prior_weight=PRIOR_WEIGHT
    )
    return replace(step_model, coefficients=dict(zip(TERM_NAMES, map(float, found), strict=True)))


def _reported(step_model: StepModel, later: Rows, samples: Sequence[StepSample]) -> StepModel:
    """The model with an error report whose live groups are those of the later steps."""
    errors = _log_errors(step_model, later)
    fresh = {group.plan: group for group in group_errors(later, errors)}
    kept = [group for group in step_model.error.groups if group.plan not in fresh]
    groups = tuple(sorted((*kept, *fresh.values()), key=lambda group: group.plan))
    return replace(
        step_model,
        error=replace(
            step_model.error,
            num_samples=step_model.error.num_samples + len(samples),
            step_interval=conformal(np.abs(errors)),
            plan_interval=max(abs(group.bias) for group in groups),
            groups=groups,
        ),
        served_plans=tuple(sorted({*step_model.served_plans, *(s.plan for s in samples)})),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
