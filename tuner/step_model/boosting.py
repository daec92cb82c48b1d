"""Fitting of boosted trees with scikit-learn, and their export as plain arrays."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from tuner.step_model.trees import LEAF, Tree, Trees

if TYPE_CHECKING:  # they take half a second to import, and few processes fit anything
    from sklearn.ensemble import HistGradientBoostingRegressor
    from threadpoolctl import ThreadpoolController

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
    from sklearn.ensemble import HistGradientBoostingRegressor

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


def one_thread() -> AbstractContextManager[Any]:
    """Fits of hundreds of rows run on the calling thread alone while the block runs.

    Several threads mostly wait for each other there: two take 0.42 s of CPU for a step model
    instead of 0.16, and seconds where the cores are busy.
    """
    return cast(AbstractContextManager[Any], _thread_pools().limit(limits=1))


@cache
def _thread_pools() -> ThreadpoolController:
    """To find the libraries' pools takes 10 ms, to limit them 16 us."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


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
