"""All layers of a decode step in one call: as call by call, and as ``transformers``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.executors.inline import InlineExecutor
from engine.executors.process import ProcessExecutor
from engine.models import llama
from engine.models.native_layers import NativeLayers
from engine.parallel.few_rows import can_be_few, most_rows
from engine.rank.runner import TORCH_DTYPES
from engine.spec.config import EngineConfig
from engine.spec.model import DType, ModelConfig
from engine.spec.modes import BASE
from engine.spec.plan import ParallelPlan, parse_plan
from engine.spec.quantisation import WeightFormat
from tests.engine.checkpoints import family_config, write_checkpoint
from tests.engine.plan_worlds import PROMPTS, World, outputs, pinned, same_unless_tied
from tests.engine.rank_pools import RankPools
from tests.engine.scheduler_driver import Generated, generate
from tests.engine.step_driver import DrivenSequence

# Weights whose every shard of up to two ranks is packed.
WIDE = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "head_dim": 32,
    "attention_bias": True,
    "mlp_bias": True,
}
ONE_CALL = "all in one call in decode"

pytestmark = pytest.mark.skipif(
    not can_be_few(torch.float32), reason="no compiler, or not these instructions"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("wide")
    return World(write_checkpoint(folder, family_config("llama", **WIDE)))


def test_one_call_answers_as_transformers_in_float32(world: World) -> None:
    got = world.run(ParallelPlan(), mode=pinned(BASE), dtype=DType.FLOAT32)
    for mine, wanted in zip(got, world.reference(torch.float32), strict=True):
        same_unless_tied(mine, wanted)


@pytest.fixture(scope="module")
def ragged_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Its gates end within what is multiplied together, so that they follow the product."""
    config = family_config("llama", **{**WIDE, "intermediate_size": 224})
    return World(write_checkpoint(tmp_path_factory.mktemp("ragged"), config))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16])
@pytest.mark.parametrize("form", [None, WeightFormat.INT8, WeightFormat.W8A8])
def test_one_call_gives_the_bits_of_the_calls_one_by_one(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    form: WeightFormat | None,
    dtype: DType,
    threads: int,
) -> None:
    if not most_rows(TORCH_DTYPES[dtype], is_int8=form is not None):
        pytest.skip("not these instructions")
    _assert_same_bits(world, monkeypatch, dtype, threads, form)


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16])
def test_so_it_does_where_gates_end_within_what_is_multiplied_together(
    ragged_world: World, monkeypatch: pytest.MonkeyPatch, dtype: DType
) -> None:
    if not most_rows(TORCH_DTYPES[dtype]):
        pytest.skip("not these instructions")
    _assert_same_bits(ragged_world, monkeypatch, dtype, 2, None)


def _assert_same_bits(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    dtype: DType,
    threads: int,
    form: WeightFormat | None,
) -> None:
    num_calls = 0

    def count(native: NativeLayers, *arguments: Any) -> bool:
        nonlocal num_calls
        has_run = try_run(native, *arguments)
        num_calls += has_run
        return has_run

    def run() -> list[DrivenSequence]:
        # More than threads keep to themselves, and in the end fewer.
        prompts = [*PROMPTS, *([token] for token in range(20, 24))]
        return world.run(
            ParallelPlan(), mode=pinned(BASE), dtype=dtype, quantisation=form, prompts=prompts
        )

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try_run = NativeLayers.try_run
    monkeypatch.setattr(NativeLayers, "try_run", count)
    try:
        at_once = run()
        assert num_calls
        monkeypatch.setattr(llama, "find_native_layers", lambda *_, **__: None)
        one_by_one = run()
    finally:
        torch.set_num_threads(before)
    assert outputs(at_once) == outputs(one_by_one)
    for mine, wanted in zip(at_once, one_by_one, strict=True):
        assert np.array_equal(np.stack(mine.logits), np.stack(wanted.logits))


@pytest.mark.parametrize("form", [None, WeightFormat.INT8])
def test_two_ranks_sum_inside_the_call_as_one_rank_answers(
    world: World, rank_pools: RankPools, form: WeightFormat | None
) -> None:
    if not most_rows(torch.float32, is_int8=form is not None):
        pytest.skip("not these instructions")
    config = EngineConfig(
        model_dir=world.folder,
        dtype=DType.FLOAT32,
        block_size=4,
        num_kv_blocks=64,
        quantisation=form,
    )
    alone, two = ParallelPlan(), parse_plan("tp=2").plan
    pool = rank_pools.get(2)
    executor = ProcessExecutor(config, world.model, two, ranks=pool)
    assert ONE_CALL in executor.start().computes_by
    executor.close()
    got = _generate(ProcessExecutor(config, world.model, two, ranks=pool), config, world.model, two)
    want = _generate(InlineExecutor(config, world.model, alone), config, world.model, alone)
    for mine, reference in zip(got, want, strict=True):
        assert mine.token_ids == reference.token_ids


def _generate(
    executor: InlineExecutor | ProcessExecutor,
    config: EngineConfig,
    model: ModelConfig,
    plan: ParallelPlan,
) -> list[Generated]:
    prompts = [[5, 9, 200, 31, 77], [3], [*range(250, 230, -1)]]
    return generate(executor, config=config, model=model, plan=plan, prompts=prompts, max_tokens=8)


def test_the_start_says_so(world: World, tmp_path: Path) -> None:
    config = EngineConfig(
        model_dir=world.folder, dtype=DType.FLOAT32, block_size=4, num_kv_blocks=64
    )
    executor = InlineExecutor(config, world.model, ParallelPlan())
    assert ONE_CALL in executor.start().computes_by
    executor.close()
    small = write_checkpoint(tmp_path, family_config("llama"))  # whose weights stay plain
    config = EngineConfig(model_dir=small, dtype=DType.FLOAT64, block_size=4, num_kv_blocks=64)
    executor = InlineExecutor(config, ModelConfig.from_dir(small), ParallelPlan())
    assert ONE_CALL not in executor.start().computes_by
    executor.close()
