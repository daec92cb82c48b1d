"""The inline executor says clearly what it cannot do."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from engine.executors.inline import InlineExecutor
from engine.rank.runner import ModelRunner
from engine.spec.config import EngineConfig
from engine.spec.errors import CheckpointError, PlanError, RankError
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from tests.contracts.executor import BLOCK_SIZE, NUM_BLOCKS, next_step, prompt_step


def config_of(model_dir: Path) -> EngineConfig:
    return EngineConfig(model_dir=model_dir, block_size=BLOCK_SIZE, num_kv_blocks=NUM_BLOCKS)


def inline(model_dir: Path) -> InlineExecutor:
    return InlineExecutor(config_of(model_dir), ModelConfig.from_dir(model_dir), ParallelPlan())


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
    step.slots = np.array([7, 1], np.int32).tobytes()
    executor.submit(step)
    executor.submit(prompt_step(13))
    with pytest.raises(RankError, match=r"step 12 failed.*slot 7 was never started"):
        executor.collect()
    with pytest.raises(RankError, match="step 13 was not run: step 12 failed"):
        executor.collect()
    executor.close()


def test_a_row_without_the_blocks_for_its_tokens_is_refused(tiny_model_dir: Path) -> None:
    executor = inline(tiny_model_dir)
    executor.start()
    executor.submit(prompt_step(0, lens=(7,)))
    executor.submit(next_step(1, count=1))
    executor.collect()
    executor.submit(next_step(2, count=1))
    executor.collect()
    with pytest.raises(RankError, match="slot 0 has too few blocks for 9 tokens; 3 are needed"):
        executor.collect()
    executor.close()


def test_a_step_that_takes_too_long_is_a_rank_error_with_the_limit(tiny_model_dir: Path) -> None:
    executor = inline(tiny_model_dir)
    executor.start()
    executor.submit(prompt_step(4, lens=(200,)))
    with pytest.raises(RankError, match=r"step 4 was not done within 0 s"):
        executor.collect(0.0)
    executor.close()


def test_a_failed_rank_s_memory_is_free_once_it_is_closed(tiny_model_dir: Path) -> None:
    """The ranks that take its place need it; the error is kept meanwhile."""
    gc.collect()
    gc.freeze()  # what other tests left need not be looked through
    executor = inline(tiny_model_dir)
    executor.start()
    step = prompt_step(0)
    step.slots = np.array([7, 1], np.int32).tobytes()
    executor.submit(step)
    with pytest.raises(RankError, match="slot 7") as failure:
        executor.collect()
    assert len(live_runners()) == 1
    executor.close()
    assert live_runners() == []
    assert failure.value.__cause__ is not None


def live_runners() -> list[ModelRunner]:
    """Of this test."""
    gc.collect()
    # Asking some of torch's objects for their class by isinstance() makes them warn.
    return [found for found in gc.get_objects() if type(found) is ModelRunner]
