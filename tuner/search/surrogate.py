"""The surrogate: metrics of whole operating points in milliseconds, fidelity ``predicted``.

Learns log metrics of simulated and measured points from settings, workload descriptors and two
physical features (how long a full decode step and a mean prompt take), with boosted trees and
split-conformal intervals. It ranks what to simulate next; it never decides alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from engine.executors.protocol import StepTimer
from engine.modes.chooser import ModeChooser
from engine.spec.measurement import Fidelity
from engine.spec.modes import Mode
from engine.spec.settings import Caps, Settings
from engine.spec.steps import StepShape
from policies.points import Estimate, OperatingPoint
from tuner.step_model.boosting import FloatArray, boosted, export_trees, one_thread
from tuner.step_model.fit import conformal
from tuner.step_model.trees import Trees
from tuner.workload.workload import Workload, gap_cv

SCHEMA = "surrogate/v1"
NUM_FOLDS = 5
MIN_POINTS = 20
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
    """Workload descriptors. ``rate_rps`` is the concurrency for a closed loop."""

    rate_rps: float
    mean_input_tokens: float
    mean_output_tokens: float
    p95_input_tokens: float
    gap_cv: float
    is_closed: bool

    @classmethod
    def of(cls, workload: Workload) -> Load:
        inputs = workload.input_tokens
        rate = workload.closed.concurrency if workload.closed else workload.rate_rps
        return cls(
            rate_rps=float(rate or 1.0),
            mean_input_tokens=float(inputs.mean()),
            mean_output_tokens=float(workload.output_tokens.mean()),
            p95_input_tokens=float(np.percentile(inputs, 95)),
            gap_cv=gap_cv(workload.arrival_s) or 0.0,
            is_closed=workload.closed is not None,
        )


@dataclass(frozen=True, kw_only=True)
class Example:
    """One operating point and the load and timer it was observed under."""

    point: OperatingPoint
    row: tuple[float, ...]


def features(settings: Settings, load: Load, timer: StepTimer) -> tuple[float, ...]:
    """One row of numbers for the trees."""
    plan, caps = settings.plan, settings.caps
    prefill_s = _step_s(timer, _prefill(settings, load))
    decode_s = _step_s(timer, _decode(settings, load))
    per_request_s = prefill_s + load.mean_output_tokens * decode_s / caps.max_num_seqs
    busy = load.rate_rps * per_request_s / plan.dp
    threshold = settings.threshold_tokens if plan.shift else 0
    return (
        math.log(plan.dp),
        math.log(plan.pp),
        math.log(plan.sp),
        math.log(plan.tp),
        math.log1p(threshold),
        math.log(caps.max_num_seqs),
        math.log(caps.max_num_batched_tokens),
        math.log(load.rate_rps),
        math.log(load.mean_input_tokens),
        math.log(load.mean_output_tokens),
        math.log(load.p95_input_tokens),
        load.gap_cv,
        math.log(prefill_s),
        math.log(decode_s),
        math.log(busy),
    )


@dataclass(frozen=True, kw_only=True)
class Surrogate:
    """Trees per metric (log scale) and their conformal half widths."""

    trees: dict[str, Trees]
    half_widths: dict[str, float]
    num_points: int

    def predict(self, settings: Settings, load: Load, timer: StepTimer) -> OperatingPoint:
        """The point of ``settings`` under ``load``, fidelity ``predicted``."""
        row = features(settings, load, timer)
        metrics = {}
        for name, trees in self.trees.items():
            log_value, half = trees.predict(row), self.half_widths[name]
            metrics[name] = Estimate(
                value=math.exp(log_value),
                low=math.exp(log_value - half),
                high=math.exp(log_value + half),
            )
        return OperatingPoint(settings=settings, fidelity=Fidelity.PREDICTED, metrics=metrics)

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Surrogate:
        return cls(
            trees={name: Trees.from_json(trees) for name, trees in raw["trees"].items()},
            half_widths=raw["half_widths"],
            num_points=raw["num_points"],
        )


def fit_surrogate(
    examples: Sequence[Example],
    *,
    keys: Sequence[str] = TARGETS,
    has_intervals: bool = True,
    seed: int = 0,
) -> Surrogate | None:
    """Fit every metric of ``keys`` that enough examples observed; None with too few examples.

    Intervals cost ``NUM_FOLDS`` more fits per metric. Without those fits the intervals have no
    width, which is enough for ranking.
    """
    if len(examples) < MIN_POINTS:
        return None
    with one_thread():
        return _fit(examples, keys, has_intervals, seed)


def _fit(
    examples: Sequence[Example], keys: Sequence[str], has_intervals: bool, seed: int
) -> Surrogate:
    trees, half_widths = {}, {}
    for key in keys:
        known = [e for e in examples if _is_usable(e.point, key)]
        if len(known) < MIN_POINTS:
            continue
        x = np.array([e.row for e in known])
        y = np.log([e.point.metrics[key].value for e in known])
        trees[key] = export_trees(boosted(monotone=None, seed=seed).fit(x, y))
        half_widths[key] = _half_width(x, y, seed) if has_intervals else 0.0
    return Surrogate(trees=trees, half_widths=half_widths, num_points=len(examples))


def _half_width(x: FloatArray, y: FloatArray, seed: int) -> float:
    """90 % of held-out log errors are below this."""
    fold = np.random.default_rng([seed, 0xF01D]).permutation(len(y)) % NUM_FOLDS
    errors = np.zeros(len(y))
    for k in range(NUM_FOLDS):
        held = fold == k
        fitted = boosted(monotone=None, seed=seed).fit(x[~held], y[~held])
        errors[held] = np.abs(y[held] - fitted.predict(x[held]))
    return conformal(errors)


def _is_usable(point: OperatingPoint, key: str) -> bool:
    estimate = point.metrics.get(key)
    return estimate is not None and 0 < estimate.value < math.inf


def _step_s(timer: StepTimer, shape: StepShape) -> float:
    return timer.host_seconds(shape) + max(timer.stage_seconds(shape))


def _prefill(settings: Settings, load: Load) -> StepShape:
    length = max(1, round(load.mean_input_tokens))
    return StepShape(
        mode=_mode(settings, length),
        num_seqs=1,
        num_prefill_tokens=length,
        prefill_context_tokens=length,
        prefill_attention_pairs=length * (length + 1) // 2,
        num_sampled=1,
    )


def _decode(settings: Settings, load: Load) -> StepShape:
    num_seqs = _cap(settings.caps)
    context = round(load.mean_input_tokens + load.mean_output_tokens / 2)
    return StepShape(
        mode=_mode(settings, num_seqs),
        num_seqs=num_seqs,
        num_decode_tokens=num_seqs,
        decode_context_tokens=num_seqs * context,
        num_sampled=num_seqs,
    )


def _cap(caps: Caps) -> int:
    return min(caps.max_num_seqs, caps.max_num_batched_tokens)


def _mode(settings: Settings, num_tokens: int) -> Mode:
    return ModeChooser.of(settings).choose(num_tokens, 0)
