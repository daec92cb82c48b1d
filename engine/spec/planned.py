"""Settings of a plan as a person names it."""

from __future__ import annotations

from engine.spec.modes import AUTO, Mode, ModePin
from engine.spec.plan import DEFAULT_SHIFT_THRESHOLD, PlanSpec
from engine.spec.rungs import pin_of, rungs_of
from engine.spec.settings import Caps, Settings


def planned_settings(
    spec: PlanSpec,
    caps: Caps,
    *,
    pin: ModePin = AUTO,
    rungs: tuple[Mode, ...] | None = None,
) -> Settings:
    """Settings of ``spec``; the default threshold where it names none.

    Raises:
        PolicyError: a mode that the plan does not have.
    """
    threshold = spec.threshold_tokens
    return Settings(
        plan=spec.plan,
        threshold_tokens=DEFAULT_SHIFT_THRESHOLD if threshold is None else threshold,
        rung_thresholds=spec.rung_thresholds,
        caps=caps,
        pin=pin_of(spec.plan, pin),
        rungs=None if rungs is None else rungs_of(spec.plan, rungs),
    )
