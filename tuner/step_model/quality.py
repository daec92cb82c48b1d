"""Whether a step model is good enough to believe, and what to do where it is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tuner.step_model.model import ErrorReport, GroupError

# On otherwise idle machines errors were 4 % to 12 %, and intervals within 10 %.
MOST_STEP_ERROR = 0.2
MOST_PLAN_ERROR = 0.15


@dataclass(frozen=True, kw_only=True)
class Quality:
    """``worst`` is the plan whose steps were predicted worst by a fit that never saw it.

    ``plan_error`` is how far a whole plan may be off (``ErrorReport.plan_interval``).
    """

    worst: GroupError
    plan_error: float

    @classmethod
    def of(cls, error: ErrorReport) -> Quality:
        return cls(
            worst=max(error.groups, key=lambda group: group.mape), plan_error=error.plan_interval
        )

    @property
    def is_good(self) -> bool:
        return self.worst.mape <= MOST_STEP_ERROR and self.plan_error <= MOST_PLAN_ERROR

    def verdict(self) -> str:
        """How good the model is, in words."""
        numbers = (
            f"steps of {self.worst.plan} are off by {self.worst.mape:.0%} "
            f"(good: up to {MOST_STEP_ERROR:.0%}), whole plans by {self.plan_error:.0%} "
            f"(good: up to {MOST_PLAN_ERROR:.0%})"
        )
        return f"the cost model is {'good' if self.is_good else 'poor'}: held out, {numbers}"

    def advice(self, *, seconds: float | None = None, rounds: int = 1) -> str | None:
        """What to do about a poor model that was measured like this; None about a good one."""
        if self.is_good:
            return None
        longer = "longer (--seconds)" if seconds is None else f"longer (--seconds {2 * seconds:g})"
        drift = f"--rounds {2 * rounds}" if rounds > 1 else "--rounds 4"
        return (
            f"profile again on an idle machine, {longer}; where others share the machine and its "
            f"speed drifts, add {drift} with as many times the seconds. Until then answers from "
            "this model are uncertain: trust live trials"
        )

    def to_json(self, *, seconds: float | None = None, rounds: int = 1) -> dict[str, Any]:
        return {
            "is_good": self.is_good,
            "verdict": self.verdict(),
            "advice": self.advice(seconds=seconds, rounds=rounds),
            "worst_plan": self.worst.plan,
            "worst_step_error": self.worst.mape,
            "plan_error": self.plan_error,
        }
