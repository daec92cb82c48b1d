from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.step_model.boosting import boosted, export_trees
from tuner.step_model.trees import Trees


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), monotone=st.sampled_from([None, (1, 0, -1)]))
def test_plain_trees_answer_what_scikit_learn_answers(
    seed: int, monotone: tuple[int, ...] | None
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(300, 3))
    y = np.sin(x[:, 0]) + x[:, 1] ** 2 - x[:, 2] + rng.normal(size=300) * 0.1
    model = boosted(monotone=monotone, seed=seed).fit(x, y)
    trees = export_trees(model)
    fresh = rng.normal(size=(100, 3)) * 2
    expected = model.predict(fresh)
    assert [trees.predict(row) for row in fresh.tolist()] == pytest.approx(expected, abs=1e-12)


def test_trees_survive_json() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 2))
    trees = export_trees(boosted(monotone=None, seed=0).fit(x, x[:, 0]))
    assert Trees.from_json(json.loads(json.dumps(trees.to_json()))) == trees
