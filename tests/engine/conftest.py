"""Fixtures of the engine's tests: a checkpoint, and rank processes that outlive a test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.models.create import create_model
from tests.engine.rank_pools import RankPools


@pytest.fixture(scope="session")
def rank_pools() -> Iterator[RankPools]:
    """Rank processes by world size, ended with the session."""
    pools = RankPools()
    yield pools
    pools.close()


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random checkpoint: 8 query heads, 2 KV heads, a vocabulary of 515."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    create_model(folder, preset="tiny", seed=1)
    return folder
