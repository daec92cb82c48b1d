"""Fitting of operator curves: a robust roofline first, then a boosted correction in log space."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from tuner.hardware.curves import (
    LEAF_UNIT,
    TABLE_STEP,
    Correction,
    HeldOut,
    OperatorCurve,
    PackedTrees,
    Roofline,
    SizeCurve,
    SmallLaw,
)
from tuner.hardware.physics import FloatArray, Work
from tuner.step_model.boosting import boosted, export_trees
from tuner.step_model.trees import LEAF, Tree, Trees

COVERAGE = 0.9
NUM_FOLDS = 5
# Few large trees: as good as many small ones, in half the space.
NUM_LEAVES = 31
NUM_BINS = 64
LEARNING_RATE = 0.2
# Log sizes of neighbouring knots of a collective's curve, and how stiff the curve is.
KNOT_STEP = 2 * np.log(2.0)
STIFFNESS = 0.15
PULL = 0.05  # how much a jump is drawn to none
OUTLIER_LOG = 0.1  # errors beyond it count linearly


def fit_operator(
    work: Work, seconds: FloatArray, *, num_trees: int, seed: int = 0
) -> OperatorCurve:
    """Roofline and correction of one kind of operator."""
    roofline = fit_roofline(work, seconds)
    left = np.log(seconds / roofline.seconds(work))
    model = boosted(
        monotone=None,
        seed=seed,
        num_trees=num_trees,
        num_leaves=NUM_LEAVES,
        num_bins=NUM_BINS,
        learning_rate=LEARNING_RATE,
    )
    trees = export_trees(model.fit(work.variables, left))
    sizes = work.variables[:, : work.num_sizes]
    return OperatorCurve(
        roofline=roofline,
        correction=Correction(
            trees=packed(trees, work.variables.shape[1]),
            low=_rounded(sizes.min(axis=0)),
            high=_rounded(sizes.max(axis=0)),
        ),
    )


def fit_roofline(work: Work, seconds: FloatArray) -> Roofline:
    """The four numbers of a roofline by robust least squares of the log error.

    Larger calls count more, because only the roofline remains beyond the data, where calls are
    larger.
    """
    call_s = float(np.quantile(seconds, 0.02))
    start = np.log([call_s, 0.7, 0.8, 2.0])
    bounds = (np.log([call_s / 10, 0.05, 0.05, 1.0]), np.log([call_s * 3, 1.2, 1.2, 8.0]))
    weight = np.sqrt(np.clip(np.log(seconds / call_s), 0.1, None))

    def errors(logs: FloatArray) -> FloatArray:
        return np.asarray(weight * np.log(_roofline(logs).seconds(work) / seconds))

    found = least_squares(errors, start, bounds=bounds, loss="soft_l1", f_scale=OUTLIER_LOG)
    return _roofline(np.log([_short(v) for v in np.exp(found.x)]))


def _roofline(logs: FloatArray) -> Roofline:
    call_s, flop, byte, sharpness = map(float, np.exp(logs))
    return Roofline(call_s=call_s, flop_share=flop, byte_share=byte, sharpness=sharpness)


def packed(trees: Trees, num_variables: int) -> PackedTrees:
    """The same trees in little space: thresholds shared, leaves in whole units."""
    used: list[set[float]] = [set() for _ in range(num_variables)]
    for tree in trees.trees:
        for split, threshold in zip(tree.feature, tree.threshold, strict=True):
            if split != LEAF:
                used[split].add(float(f"{threshold:.7g}"))
    thresholds = tuple(tuple(sorted(values)) for values in used)
    index = [{value: i for i, value in enumerate(values)} for values in thresholds]
    feature: list[int] = []
    value: list[int] = []

    def walk(tree: Tree, node: int) -> None:
        split = tree.feature[node]
        feature.append(split)
        if split == LEAF:
            value.append(round(tree.value[node] / LEAF_UNIT))
            return
        value.append(index[split][float(f"{tree.threshold[node]:.7g}")])
        walk(tree, tree.left[node])
        walk(tree, tree.right[node])

    for tree in trees.trees:
        walk(tree, 0)
    return PackedTrees(
        baseline=trees.baseline,
        thresholds=thresholds,
        feature=tuple(feature),
        value=tuple(value),
    )


# -- held-out error ------------------------------------------------------------------------------

Fit = Callable[[Work, FloatArray], OperatorCurve]


def held_out_logs(
    work: Work, seconds: FloatArray, groups: npt.NDArray[np.int64], fit: Fit, *, seed: int = 0
) -> FloatArray:
    """log(predicted / measured) of every row by a fit that saw no row of its group."""
    names = np.unique(groups)
    np.random.default_rng(seed).shuffle(names)
    errors = np.zeros(len(seconds))
    for fold in np.array_split(names, NUM_FOLDS):
        held = np.isin(groups, fold)
        curve = fit(work.where(~held), seconds[~held])
        errors[held] = np.log(curve.seconds(work.where(held)) / seconds[held])
    return errors


def held_out(logs: FloatArray, num_groups: int) -> HeldOut:
    """Errors relative to the measured value."""
    relative = np.abs(np.expm1(logs))
    p50, p90, p99, worst = np.quantile(relative, (0.5, 0.9, 0.99, 1.0))
    return HeldOut(
        rows=len(logs),
        groups=num_groups,
        median=_short(p50),
        p90=_short(p90),
        p99=_short(p99),
        worst=_short(worst),
        interval=_short(np.quantile(np.abs(logs), COVERAGE)),
    )


# -- curves over one size ------------------------------------------------------------------------


def fit_size_curve(
    size: FloatArray, seconds: FloatArray, breaks: tuple[float, ...] = ()
) -> SizeCurve:
    """Latency and bandwidth first, then a stiff broken line through what they leave. Outliers
    (repeats of a noisy run) do not bend it. At ``breaks`` (bytes) another algorithm begins, and the
    line may jump."""
    x, y = np.log(size), np.log(seconds)
    call_s, bytes_per_s = _latency_and_bandwidth(size, y)
    left = y - np.log(call_s + size / bytes_per_s)
    knots = np.linspace(x.min(), x.max(), max(2, round((x.max() - x.min()) / KNOT_STEP) + 1))
    jumps = np.log([b for b in breaks if size.min() < b <= size.max()])
    line = np.column_stack([np.interp(x, knots, unit) for unit in np.eye(len(knots))])
    design = np.column_stack([line, x[:, None] >= jumps[None] - TABLE_STEP])
    bend = np.diff(np.eye(len(knots)), n=2, axis=0) * STIFFNESS

    def errors(found: FloatArray) -> FloatArray:
        heights, steps = found[: len(knots)], found[len(knots) :]
        return np.concatenate([_robust(design @ found - left), bend @ heights, PULL * steps])

    start = np.concatenate([np.interp(knots, x, left), np.zeros(len(jumps))])
    found = least_squares(errors, start).x
    # Between two table steps time is interpolated, so the jump ends one step before its size.
    places = np.unique(np.concatenate([knots, jumps - 2 * TABLE_STEP, jumps - TABLE_STEP]))
    correction = np.interp(places, knots, found[: len(knots)])
    correction += (places[:, None] >= jumps[None] - TABLE_STEP) @ found[len(knots) :]
    return SizeCurve(
        call_s=call_s,
        bytes_per_s=bytes_per_s,
        log_size=_rounded(places),
        correction=_rounded(correction),
    )


def _latency_and_bandwidth(size: FloatArray, log_s: FloatArray) -> tuple[float, float]:
    start = np.array([log_s.min(), np.log(size.max()) - log_s.max()])

    def errors(logs: FloatArray) -> FloatArray:
        return np.asarray(np.log(np.exp(logs[0]) + size / np.exp(logs[1])) - log_s)

    found = least_squares(errors, start, loss="soft_l1", f_scale=OUTLIER_LOG).x
    return _short(np.exp(found[0])), _short(np.exp(found[1]))


def _robust(errors: FloatArray) -> FloatArray:
    """Square roots of soft-L1 losses: linear, not square, beyond the outlier's size."""
    scaled = errors / OUTLIER_LOG
    root = np.sqrt(np.maximum(0.0, 2.0 * (np.sqrt(1.0 + scaled**2) - 1.0)))
    return np.asarray(np.sign(errors) * OUTLIER_LOG * root)


def fit_small(num_bytes: FloatArray, seconds: FloatArray) -> SmallLaw:
    """Fixed cost, bandwidth and the sharpness of the knee between them."""
    call_s = float(np.quantile(seconds, 0.05))
    bandwidth = float(np.quantile(num_bytes / seconds, 0.95))

    def law(logs: FloatArray) -> SmallLaw:
        a, b, c = map(float, np.exp(logs))
        return SmallLaw(call_s=a, bytes_per_s=b, sharpness=c)

    def errors(logs: FloatArray) -> FloatArray:
        return np.log([law(logs).seconds(b) for b in num_bytes]) - np.log(seconds)

    bounds = (
        np.log([call_s / 5, bandwidth / 10, 1.0]),
        np.log([call_s * 5, bandwidth * 10, 8.0]),
    )
    start = np.log([call_s, bandwidth, 2.0])
    found = least_squares(errors, start, bounds=bounds, loss="soft_l1", f_scale=OUTLIER_LOG)
    return law(np.log([_short(v) for v in np.exp(found.x)]))


def _rounded(values: FloatArray) -> tuple[float, ...]:
    return tuple(_short(v) for v in values)


def _short(value: float) -> float:
    return float(f"{value:.5g}")
