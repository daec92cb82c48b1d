"""All layers of a decode step in one call: as call by call, and as ``transformers``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engine.executors.inline import InlineExecutor
from engine.executors.process import ProcessExecutor
from engine.models import llama
from engine.parallel.few_rows import can_be_few
from engine.spec.config import EngineConfig
from engine.spec.model import DType, ModelConfig
from engine.spec.modes import BASE
from engine.spec.plan import ParallelPlan, parse_plan
from tests.engine.checkpoints import family_config, write_checkpoint
from tests.engine.plan_worlds import World, outputs, pinned, same_unless_tied
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


@pytest.mark.parametrize("plan", ["tp=1", "sp=2,shift"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16])
def test_one_call_gives_the_bits_of_the_calls_one_by_one(
    world: World, monkeypatch: pytest.MonkeyPatch, dtype: DType, threads: int, plan: str
) -> None:
    parallel = parse_plan(plan).plan

    def run() -> list[DrivenSequence]:
        return world.run(parallel, mode=pinned(BASE), dtype=dtype)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        at_once = run()
        monkeypatch.setattr(llama, "find_native_layers", lambda *_, **__: None)
        one_by_one = run()
    finally:
        torch.set_num_threads(before)
    assert outputs(at_once) == outputs(one_by_one)
    for mine, wanted in zip(at_once, one_by_one, strict=True):
        assert np.array_equal(np.stack(mine.logits), np.stack(wanted.logits))


def test_two_ranks_sum_inside_the_call_as_one_rank_answers(
    world: World, rank_pools: RankPools
) -> None:
    config = EngineConfig(
        model_dir=world.folder, dtype=DType.FLOAT32, block_size=4, num_kv_blocks=64
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
