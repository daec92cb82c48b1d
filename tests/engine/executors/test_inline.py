"""The inline executor passes the executor suite and says clearly what it cannot do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from engine.config import EngineConfig, ModelConfig
from engine.errors import CheckpointError, PlanError, RankError
from engine.executors.inline import InlineExecutor
from engine.plan import ParallelPlan
from tests.contracts.executor import (
    BLOCK_SIZE,
    NUM_BLOCKS,
    ExecutorContract,
    MakeExecutor,
    prompt_step,
)


def config_of(model_dir: Path) -> EngineConfig:
    return EngineConfig(model_dir=model_dir, block_size=BLOCK_SIZE, num_kv_blocks=NUM_BLOCKS)


def inline(model_dir: Path) -> InlineExecutor:
    return InlineExecutor(config_of(model_dir), ModelConfig.from_dir(model_dir), ParallelPlan())


class TestInline(ExecutorContract):
    @pytest.fixture
    def plan(self) -> ParallelPlan:
        return ParallelPlan()

    @pytest.fixture
    def make(self, tiny_model_dir: Path) -> MakeExecutor:
        return lambda: inline(tiny_model_dir)


def test_more_than_one_rank_is_refused(tiny_model_dir: Path) -> None:
    model = ModelConfig.from_dir(tiny_model_dir)
    with pytest.raises(PlanError, match=r"sp=2,tp=2 needs 4 ranks"):
        InlineExecutor(config_of(tiny_model_dir), model, ParallelPlan(sp=2, tp=2))


def test_a_broken_checkpoint_shows_at_the_start(tiny_model_dir: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model_dir, broken)
    weights = next(broken.glob("*.safetensors"))
    tensors = load_file(weights)
    tensors.popitem()
    save_file(tensors, weights)
    with pytest.raises(CheckpointError, match="is missing"):
        inline(broken).start()


def test_a_step_that_cannot_run_is_a_rank_error_with_its_number(tiny_model_dir: Path) -> None:
    executor = inline(tiny_model_dir)
    executor.start()
    step = prompt_step(12)
    step.block_tables = b""
    executor.submit(step)
    with pytest.raises(RankError, match="step 12 failed"):
        executor.collect()
    executor.close()
