"""What the roofline part misses, as boosted trees in log space, trusted only near their data."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log, log1p

from engine.spec.modes import ENDS, SHIFT, Mode
from engine.spec.plan import ParallelPlan
from engine.spec.steps import StepShape
from tuner.step_model.trees import Trees

# Features of a step; 1 = a step with more of it never takes less time, 0 = it may do either.
FEATURES = {
    "log_tokens": 1,
    "log_seqs": 1,
    "log_decode_context": 1,
    "log_prefill_pairs": 1,
    "log_roofline": 0,
    "layers": 0,
    "sp": 0,
    "tp": 0,
    "pp": 0,
    "is_shift": 0,
}
MONOTONE = tuple(FEATURES.values())


def residual_row(
    shape: StepShape, plan: ParallelPlan, num_layers: int, roofline_s: float
) -> tuple[float, ...]:
    """Features of one step in the order of :data:`FEATURES`."""
    return (
        log1p(shape.num_tokens),
        log1p(shape.num_seqs),
        log1p(shape.decode_context_tokens),
        log1p(shape.prefill_attention_pairs),
        log(roofline_s),
        float(num_layers),
        float(plan.sp),
        float(plan.tp),
        float(plan.pp),
        _shift_share(plan, shape.mode),
    )


def _shift_share(plan: ParallelPlan, mode: Mode) -> float:
    """0 in base, 1 in shift, and between by the slices of a rung."""
    if mode in ENDS:
        return float(mode == SHIFT)
    return (plan.sp - plan.rung(mode).sp) / (plan.sp - 1)


@dataclass(frozen=True, kw_only=True)
class Residual:
    """Trees over :data:`FEATURES`, with the box of the data they were fitted on."""

    trees: Trees
    low: tuple[float, ...]
    high: tuple[float, ...]

    def factor(self, row: tuple[float, ...]) -> float:
        """What to multiply the roofline by: 1 far outside the data."""
        return exp(self.factor_log(row))

    def factor_log(self, row: tuple[float, ...]) -> float:
        """Logarithm of :meth:`factor`."""
        weight = self._weight(row)
        return weight * self.trees.predict(row) if weight > 0.01 else 0.0

    def _weight(self, row: tuple[float, ...]) -> float:
        """1 inside the box; outside it halves with every 0.35 (a factor 1.4 in log features)."""
        excess = 0.0
        for value, low, high in zip(row, self.low, self.high, strict=True):
            excess += max(0.0, low - value, value - high)
        return exp(-2.0 * excess)
