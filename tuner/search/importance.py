"""How much each knob had to do with how fast operating points were.

The share is Optuna's functional ANOVA (Hutter, Hoos, Leyton-Brown, "An Efficient Approach for
Assessing Hyperparameter Importance", 2014): of the variance of the latency score that a forest
fitted to the points explains, the part that the knob explains, with its interactions left out. It
says what mattered among the points at hand, not what would matter elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.spec.settings import Settings
from policies.points import OperatingPoint
from policies.sla import Sla

Value = int | float | bool | None
_Known = tuple[dict[str, Value], float]


@dataclass(frozen=True, kw_only=True)
class Level:
    """Points with one value of a knob: how many, and their latency over the SLA's bounds
    (geometric mean)."""

    value: Value
    num_points: int
    latency_over_bound: float


@dataclass(frozen=True, kw_only=True)
class Importance:
    """One knob: its share of the explained variance, and how each value did."""

    knob: str
    share: float
    levels: tuple[Level, ...]

    def to_json(self) -> dict[str, Any]:
        levels = [
            {
                "value": level.value,
                "num_points": level.num_points,
                "latency_over_bound": level.latency_over_bound,
            }
            for level in self.levels
        ]
        return {"knob": self.knob, "share": self.share, "levels": levels}


def importances(points: Sequence[OperatingPoint], sla: Sla) -> tuple[Importance, ...]:
    """Every knob that was varied, the most important first; points without latencies are left
    out."""
    scores = [(point, point.latency_score(sla)) for point in points]
    known = [(_knobs(p.settings), score) for p, score in scores if math.isfinite(score)]
    values = {
        knob: sorted({knobs[knob] for knobs, _ in known}, key=_order)
        for knob in (known[0][0] if known else ())
    }
    varied = {knob: found for knob, found in values.items() if len(found) > 1}
    shares = _shares(varied, known)
    found = [
        Importance(knob=knob, share=shares[knob], levels=_levels(knob, every, known))
        for knob, every in varied.items()
    ]
    return tuple(sorted(found, key=lambda one: (-one.share, one.knob)))


def _knobs(settings: Settings) -> dict[str, Value]:
    plan, caps = settings.plan, settings.caps
    return {
        "dp": plan.dp,
        "pp": plan.pp,
        "sp": plan.sp,
        "tp": plan.tp,
        "shift": plan.shift,
        "threshold_tokens": settings.threshold_tokens if plan.shift else None,
        "has_rungs": bool(settings.rung_thresholds) if len(plan.modes) > 2 else None,
        "max_num_seqs": caps.max_num_seqs,
        "max_num_batched_tokens": caps.max_num_batched_tokens,
        "max_step_ms": caps.max_step_ms,
    }


def _shares(values: Mapping[str, list[Value]], known: Sequence[_Known]) -> dict[str, float]:
    """Each knob's share by Optuna's evaluator; 0 where nothing differs.

    A knob is given by the rank of its value, so that one without a value (no threshold) has a
    place, too.
    """
    # Imported here, so that only those who ask for importance wait for these libraries.
    import optuna

    if len({score for _, score in known}) < 2:
        return dict.fromkeys(values, 0.0)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        knob: optuna.distributions.IntDistribution(0, len(every) - 1)
        for knob, every in values.items()
    }
    for knobs, score in known:
        params = {knob: every.index(knobs[knob]) for knob, every in values.items()}
        study.add_trial(
            optuna.trial.create_trial(value=score, params=params, distributions=distributions)
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _levels(knob: str, values: Sequence[Value], known: Sequence[_Known]) -> tuple[Level, ...]:
    levels = []
    for value in values:
        scores = [score for knobs, score in known if knobs[knob] == value]
        mean = math.fsum(scores) / len(scores)
        level = Level(value=value, num_points=len(scores), latency_over_bound=math.exp(mean))
        levels.append(level)
    return tuple(levels)


def _order(value: Value) -> tuple[bool, float]:
    return value is not None, 0.0 if value is None else float(value)
