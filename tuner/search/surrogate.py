"""The surrogate: metrics of whole operating points in milliseconds, fidelity ``predicted``.

First comes physics: what queueing alone says (:mod:`tuner.search.queueing`), times one factor a
metric. What that misses is learned in logs by boosted trees over the plan, the caps and what drove
the estimate. Both are judged on plans that they never saw; if the trees do not beat physics there,
they are off. The 90 % intervals are split-conformal, from the same errors, with separate ones for
settings whose requests queue. It ranks what to simulate next; it never decides alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.executors.protocol import StepTimer
from engine.spec.measurement import Fidelity
from engine.spec.settings import Settings
from policies.points import Estimate, OperatingPoint
from tuner.search.queueing import Queueing, estimate_queueing
from tuner.step_model.boosting import FloatArray, boosted, export_trees, one_thread
from tuner.step_model.fit import conformal
from tuner.step_model.trees import Trees
from tuner.workload.workload import Workload, gap_cv

IntArray = npt.NDArray[np.int64]
SCHEMA = "surrogate/v2"
NUM_FOLDS = 5
MIN_POINTS = 20
# If more requests than this wait at a replica, its requests count as queueing.
QUEUES = 1.0
TARGETS = (
    "p50_ttft_ms",
    "p95_ttft_ms",
    "p99_ttft_ms",
    "p50_tpot_ms",
    "p95_tpot_ms",
    "p99_tpot_ms",
    "p95_itl_ms",
    "p95_e2e_ms",
    "throughput_tokens_per_s",
)


@dataclass(frozen=True, kw_only=True)
class Load:
    """A workload, and descriptors of it. ``rate_rps`` is the concurrency for a closed loop."""

    workload: Workload
    rate_rps: float
    mean_input_tokens: float
    mean_output_tokens: float
    gap_cv: float

    @property
    def is_closed(self) -> bool:
        """Whether clients wait for answers before they ask again."""
        return self.workload.closed is not None

    @classmethod
    def of(cls, workload: Workload) -> Load:
        rate = workload.closed.concurrency if workload.closed else workload.rate_rps
        return cls(
            workload=workload,
            rate_rps=float(rate or 1.0),
            mean_input_tokens=float(workload.input_tokens.mean()),
            mean_output_tokens=float(workload.output_tokens.mean()),
            gap_cv=gap_cv(workload.arrival_s) or 0.0,
        )


@dataclass(frozen=True, kw_only=True)
class Features:
    """What is known of settings under a load without simulating them: a ``row`` for the trees, and
    what physics says of every metric. ``queues``: its requests wait for each other."""

    row: tuple[float, ...]
    physical: dict[str, float]
    queues: bool


@dataclass(frozen=True, kw_only=True)
class Example:
    """One operating point and the features of what it was observed under."""

    point: OperatingPoint
    features: Features


def features(settings: Settings, load: Load, timer: StepTimer) -> Features:
    """Physics first: a millisecond instead of a simulation."""
    queueing = estimate_queueing(settings, load.workload, timer)
    return Features(
        row=_row(settings, load, queueing),
        physical=queueing.metrics,
        queues=queueing.waiting > QUEUES,
    )


def _row(settings: Settings, load: Load, queueing: Queueing) -> tuple[float, ...]:
    plan, caps = settings.plan, settings.caps
    return (
        math.log(plan.dp),
        math.log(plan.pp),
        math.log(plan.sp),
        math.log(plan.tp),
        math.log1p(settings.threshold_tokens if plan.shift else 0),
        math.log(caps.max_num_seqs),
        math.log(caps.max_num_batched_tokens),
        math.log(load.rate_rps),
        math.log(load.mean_input_tokens),
        math.log(load.mean_output_tokens),
        load.gap_cv,
        math.log(queueing.prefill_s),
        math.log(queueing.decode_s),
        queueing.busy,
        math.log(queueing.active),
        math.log1p(queueing.waiting),
        math.log(queueing.metrics["p95_ttft_ms"]),
    )


@dataclass(frozen=True, kw_only=True)
class MetricModel:
    """One metric: ``log_factor`` on what physics says, and the trees on top, None if they do not
    beat physics on plans that they never saw. The errors are medians of |log| there. ``half_width``
    is that of the 90 % interval in logs, ``queued_half_width`` the same if requests queue."""

    log_factor: float
    trees: Trees | None
    half_width: float
    queued_half_width: float
    physical_error: float
    boosted_error: float
    num_points: int

    def log_ratio(self, row: Sequence[float]) -> float:
        """Log of the metric over what physics says."""
        return self.log_factor + (self.trees.predict(row) if self.trees is not None else 0.0)


@dataclass(frozen=True, kw_only=True)
class Surrogate:
    """A model per metric."""

    models: dict[str, MetricModel]
    num_points: int

    def predict(self, settings: Settings, load: Load, timer: StepTimer) -> OperatingPoint:
        """The point of ``settings`` under ``load``, fidelity ``predicted``."""
        known = features(settings, load, timer)
        metrics = {}
        for name, model in self.models.items():
            log_value = math.log(known.physical[name]) + model.log_ratio(known.row)
            half = model.queued_half_width if known.queues else model.half_width
            metrics[name] = Estimate(
                value=math.exp(log_value),
                low=math.exp(log_value - half),
                high=math.exp(log_value + half),
            )
        return OperatingPoint(settings=settings, fidelity=Fidelity.PREDICTED, metrics=metrics)

    def error_report(self) -> list[str]:
        """One line a metric: how far physics and the trees are off on plans they never saw."""
        return [
            f"{name}: physics off by {math.expm1(m.physical_error):.0%}, with boosting by "
            f"{math.expm1(m.boosted_error):.0%} (median, plans held out, {m.num_points} points); "
            f"boosting is {'on' if m.trees is not None else 'off'}"
            for name, m in self.models.items()
        ]

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Surrogate:
        def model(values: dict[str, Any]) -> MetricModel:
            trees = values["trees"]
            read = None if trees is None else Trees.from_json(trees)
            return MetricModel(**{**values, "trees": read})

        models = {name: model(values) for name, values in raw["models"].items()}
        return cls(models=models, num_points=raw["num_points"])


def fit_surrogate(
    examples: Sequence[Example], *, keys: Sequence[str] = TARGETS, seed: int = 0
) -> Surrogate | None:
    """Fit every metric of ``keys`` that enough examples observed; None with too few examples."""
    if len(examples) < MIN_POINTS:
        return None
    models = {}
    with one_thread():
        for key in keys:
            known = [e for e in examples if _is_usable(e, key)]
            if len(known) >= MIN_POINTS:
                models[key] = _fit(known, key, seed)
    return Surrogate(models=models, num_points=len(examples))


def _fit(examples: Sequence[Example], key: str, seed: int) -> MetricModel:
    x = np.array([e.features.row for e in examples])
    y = np.log([e.point.metrics[key].value / e.features.physical[key] for e in examples])
    plans = sorted({str(e.point.settings.plan) for e in examples})
    groups = np.array([plans.index(str(e.point.settings.plan)) for e in examples])
    queued = np.array([e.features.queues for e in examples])
    physical, with_trees = _held_out_errors(x, y, groups, seed)
    physical_error = float(np.median(np.abs(physical)))
    boosted_error = float(np.median(np.abs(with_trees)))
    # Both the middle and the tail have to be better: trees made from few points are right on
    # average, but far off where they have no points.
    is_better = boosted_error < physical_error and conformal(np.abs(with_trees)) < conformal(
        np.abs(physical)
    )
    errors = np.abs(with_trees if is_better else physical)
    factor = float(np.median(y))
    return MetricModel(
        log_factor=factor,
        trees=export_trees(_trees(seed).fit(x, y - factor)) if is_better else None,
        half_width=_half_width(errors, ~queued),
        queued_half_width=_half_width(errors, queued),
        physical_error=physical_error,
        boosted_error=boosted_error,
        num_points=len(examples),
    )


def _held_out_errors(
    x: FloatArray, y: FloatArray, groups: IntArray, seed: int
) -> tuple[FloatArray, FloatArray]:
    """Log errors of physics and of the trees on the plans (``groups``) of the other folds."""
    count = len(np.unique(groups))
    if count < 2:
        # Nothing can be held out: only the spread is known, and trees are not trusted.
        return y - np.median(y), np.full(len(y), np.inf)
    from sklearn.model_selection import GroupKFold

    physical, with_trees = np.zeros(len(y)), np.zeros(len(y))
    for seen, held in GroupKFold(min(NUM_FOLDS, count)).split(x, y, groups):
        factor = float(np.median(y[seen]))
        physical[held] = y[held] - factor
        fitted = _trees(seed).fit(x[seen], y[seen] - factor)
        with_trees[held] = physical[held] - fitted.predict(x[held])
    return physical, with_trees


def _trees(seed: int) -> Any:
    return boosted(monotone=None, seed=seed, num_trees=60, num_leaves=6)


def _half_width(errors: FloatArray, is_alike: npt.NDArray[np.bool_]) -> float:
    """90 % of held-out log errors of its kind are below this; of all kinds if they are few."""
    mine = errors[is_alike] if is_alike.sum() >= MIN_POINTS else errors
    return conformal(mine)


def _is_usable(example: Example, key: str) -> bool:
    estimate = example.point.metrics.get(key)
    is_known = estimate is not None and 0 < estimate.value < math.inf
    return is_known and key in example.features.physical
