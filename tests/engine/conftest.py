"""Fixtures of the engine's tests: models, paced engines, rank processes that outlive a test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.engine import Engine
from engine.models.create import create_model
from engine.spec.config import EngineConfig, ExecutorKind
from engine.spec.settings import Caps, Settings
from tests.engine.paced import ConstantTimer
from tests.engine.rank_pools import LastingPool, RankPools


@pytest.fixture(scope="session")
def rank_pools() -> Iterator[RankPools]:
    """Rank processes by world size, ended with the session."""
    pools = RankPools()
    yield pools
    pools.close()


@pytest.fixture(scope="session")
def lasting_pool() -> Iterator[LastingPool]:
    """Rank processes that one engine after the other may use; starting them takes seconds."""
    pool = LastingPool()
    yield pool
    pool.end()


@pytest.fixture
def lasting_ranks(lasting_pool: LastingPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines of this test, whose replicas have processes one at a time, use the lasting pool."""
    monkeypatch.setattr("engine.fleet.RankPool", lambda *, num_spares: lasting_pool)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random checkpoint: 8 query heads, 2 KV heads, a vocabulary of 515."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    create_model(folder, preset="tiny", seed=1)
    return folder


@pytest.fixture(scope="session")
def paced_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The description of a model without its weights: 8 query heads, a vocabulary of 500."""
    folder = tmp_path_factory.mktemp("paced")
    description = {
        "model_type": "llama",
        "num_hidden_layers": 8,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "vocab_size": 500,
        "max_position_embeddings": 512,
    }
    (folder / "config.json").write_text(json.dumps(description))
    return folder


@pytest.fixture
def config(paced_model_dir: Path) -> EngineConfig:
    """One paced rank, 8 rows, 64 tokens a step."""
    return EngineConfig(
        model_dir=paced_model_dir,
        executor=ExecutorKind.SIMULATED,
        num_kv_blocks=64,
        max_devices=8,
        settings=Settings(caps=Caps(max_num_seqs=8, max_num_batched_tokens=64)),
    )


@pytest.fixture
def engine(config: EngineConfig) -> Iterator[Engine]:
    """A running engine of ``config``, whose KV blocks and slots balance at the end."""
    with Engine(config, timer_factory=ConstantTimer) as running:
        yield running
        running.check_integrity()
