"""Fitting of boosted trees with scikit-learn, and their export as plain arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingRegressor

from tuner.step_model.trees import LEAF, Tree, Trees

FloatArray = npt.NDArray[np.float64]


def boosted(
    *,
    monotone: tuple[int, ...] | None,
    seed: int,
    num_trees: int = 80,
    num_leaves: int = 8,
    num_bins: int = 255,
    learning_rate: float = 0.1,
) -> HistGradientBoostingRegressor:
    """A small regressor: few leaves and strong shrinkage; the defaults are for hundreds of rows."""
    return HistGradientBoostingRegressor(
        max_iter=num_trees,
        max_leaf_nodes=num_leaves,
        max_bins=num_bins,
        min_samples_leaf=8,
        learning_rate=learning_rate,
        l2_regularization=1.0,
        monotonic_cst=monotone,
        early_stopping=False,
        random_state=seed,
    )


def export_trees(model: HistGradientBoostingRegressor) -> Trees:
    """The fitted ensemble as plain arrays; answers equal ``model.predict``."""
    baseline = float(np.asarray(model._baseline_prediction).ravel()[0])
    return Trees(
        baseline=baseline, trees=tuple(_tree(stage[0].nodes) for stage in model._predictors)
    )


def _tree(nodes: Any) -> Tree:
    is_leaf = nodes["is_leaf"].astype(bool)
    feature = np.where(is_leaf, LEAF, nodes["feature_idx"].astype(np.int64))
    threshold = np.where(is_leaf, 0.0, nodes["num_threshold"])
    return Tree(
        feature=tuple(int(v) for v in feature),
        threshold=tuple(float(v) for v in threshold),
        left=tuple(int(v) for v in nodes["left"]),
        right=tuple(int(v) for v in nodes["right"]),
        value=tuple(float(v) for v in nodes["value"]),
    )
