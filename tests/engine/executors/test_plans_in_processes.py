"""Every kind of plan, in real processes, computes what one rank computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.executors.inline import InlineExecutor
from engine.executors.process import ProcessExecutor
from engine.executors.protocol import Executor
from engine.kernels.native_build import NO_COMPILER_VARIABLE
from engine.modes.chooser import ModeChooser
from engine.spec.config import Collectives, EngineConfig, LinkEmulation
from engine.spec.model import DType, ModelConfig
from engine.spec.modes import AUTO, SHIFT, ModePin
from engine.spec.plan import ParallelPlan, parse_plan
from tests.engine.rank_pools import RankPools
from tests.engine.scheduler_driver import Generated, generate
from tests.engine.step_driver import DrivenSequence, StepDriver

MAX_TOKENS = 6
TOLERANCE = 1e-9

# Steps pinned, or the seed of a coin that flips their modes.
Modes = ModePin | int


def list_prompts() -> list[list[int]]:
    """Prompts of one token, of fewer tokens than ranks, and longer than a step."""
    rng = np.random.default_rng(11)
    return [rng.integers(3, 515, n).tolist() for n in (1, 2, 5, 31, 9)]


@pytest.fixture(scope="module")
def config(tiny_model_dir: Path) -> EngineConfig:
    return EngineConfig(
        model_dir=tiny_model_dir, dtype=DType.FLOAT64, block_size=4, num_kv_blocks=64
    )


@pytest.fixture(scope="module")
def single(config: EngineConfig) -> list[Generated]:
    """What one rank, in this process, computes."""
    model, plan = ModelConfig.from_dir(config.model_dir), ParallelPlan()
    return generate(
        InlineExecutor(config, model, plan),
        config=config,
        model=model,
        plan=plan,
        prompts=list_prompts(),
        max_tokens=MAX_TOKENS,
    )


def in_processes(
    config: EngineConfig, plan: ParallelPlan, pools: RankPools, modes: Modes = AUTO
) -> list[Generated]:
    model = ModelConfig.from_dir(config.model_dir)
    return generate(
        ProcessExecutor(config, model, plan, ranks=pools.get(plan.replica_size)),
        config=config,
        model=model,
        plan=plan,
        prompts=list_prompts(),
        max_tokens=MAX_TOKENS,
        pin=AUTO if isinstance(modes, int) else modes,
        coin_seed=modes if isinstance(modes, int) else None,
    )


def assert_equal(got: list[Generated], want: list[Generated]) -> None:
    for mine, reference in zip(got, want, strict=True):
        assert mine.token_ids == reference.token_ids
        largest = np.abs(reference.logits).max()
        assert np.abs(np.array(mine.logits) - reference.logits).max() <= TOLERANCE * largest


def test_greedy_output_of_the_reference_varies(single: list[Generated]) -> None:
    assert len({token for result in single for token in result.token_ids}) > 10


@pytest.mark.parametrize(
    ("text", "modes"),
    [
        ("tp=2", AUTO),
        ("sp=2,shift", AUTO),
        ("pp=2", AUTO),
        ("sp=2,tp=2,shift", 3),
        ("pp=2,sp=2,shift", 4),
        ("sp=4,shift", 7),  # a coin that draws the rung between, too
        # Eight processes start for ten seconds; eight ranks in threads run by default.
        pytest.param("sp=4,tp=2,shift", 6, marks=pytest.mark.slow),
        pytest.param("pp=2,sp=2,tp=2,shift", 5, marks=pytest.mark.slow),
        pytest.param("sp=2,tp=4,shift", ModePin(SHIFT), marks=pytest.mark.slow),
    ],
)
def test_ranks_in_processes_equal_a_single_rank(
    config: EngineConfig, single: list[Generated], rank_pools: RankPools, text: str, modes: Modes
) -> None:
    assert_equal(in_processes(config, parse_plan(text).plan, rank_pools, modes), single)


@pytest.mark.parametrize(
    ("text", "backend"),
    [
        ("tp=2", Collectives.AUTO),
        ("sp=2,shift", Collectives.AUTO),
        ("pp=2,sp=2,shift", Collectives.AUTO),
        ("pp=2", Collectives.GLOO),
        pytest.param("pp=2", Collectives.AUTO, marks=pytest.mark.slow),
        pytest.param("pp=2,sp=2,shift", Collectives.GLOO, marks=pytest.mark.slow),
    ],
)
def test_steps_submitted_ahead_get_their_tokens_from_the_ranks(
    config: EngineConfig, rank_pools: RankPools, text: str, backend: Collectives
) -> None:
    plan = parse_plan(text).plan
    model = ModelConfig.from_dir(config.model_dir)
    inline = InlineExecutor(config, model, ParallelPlan())
    wanted = driven(inline, ParallelPlan(), num_ahead=0)
    ranks = rank_pools.get(plan.replica_size)
    executor = ProcessExecutor(replace(config, collectives=backend), model, plan, ranks=ranks)
    for mine, reference in zip(driven(executor, plan, num_ahead=plan.pp), wanted, strict=True):
        assert mine.output == reference.output
        largest = np.abs(reference.logits).max()
        assert np.abs(np.array(mine.logits) - reference.logits).max() <= TOLERANCE * largest


def driven(executor: Executor, plan: ParallelPlan, *, num_ahead: int) -> list[DrivenSequence]:
    """Run the prompts with the modes mixed; the host never tells a token the ranks sampled."""
    chooser = ModeChooser(plan=plan, threshold_tokens=0, coin_seed=9)
    executor.start()
    driver = StepDriver(
        executor,
        vocab_size=515,
        budget=17,
        num_ahead=num_ahead,
        mode=lambda step_id: chooser.choose(1, step_id),
    )
    sequences = driver.run(
        list_prompts(), max_tokens=MAX_TOKENS, temperature=0.8, top_p=0.9, min_p=0.01
    )
    executor.close()
    return sequences


def test_gloo_computes_the_same(
    config: EngineConfig, single: list[Generated], rank_pools: RankPools
) -> None:
    plan = parse_plan("sp=2,tp=2,shift").plan
    over_gloo = replace(config, collectives=Collectives.GLOO)
    assert_equal(in_processes(over_gloo, plan, rank_pools, 7), single)


def test_a_host_without_a_compiler_computes_the_same(
    config: EngineConfig,
    single: list[Generated],
    rank_pools: RankPools,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(NO_COMPILER_VARIABLE, "1")
    plan = parse_plan("pp=2,sp=2,shift").plan
    assert_equal(in_processes(config, plan, rank_pools, 8), single)


def test_an_emulated_link_changes_no_result(
    config: EngineConfig, single: list[Generated], rank_pools: RankPools
) -> None:
    linked = replace(config, link=LinkEmulation(latency_us=20, gbps=10))
    assert_equal(in_processes(linked, parse_plan("sp=2,shift").plan, rank_pools), single)


def test_two_threads_a_rank_answer_the_same(
    config: EngineConfig, single: list[Generated], rank_pools: RankPools
) -> None:
    plan, threaded = parse_plan("tp=2").plan, replace(config, threads_per_rank=2)
    assert_equal(in_processes(threaded, plan, rank_pools), single)
    model = ModelConfig.from_dir(config.model_dir)
    executor = ProcessExecutor(threaded, model, plan, ranks=rank_pools.get(2))
    computes_by = executor.start().computes_by
    assert computes_by.startswith("plain weights; layers: ")
    assert computes_by.endswith("; 2 threads per rank")
    executor.close()


def test_weights_lie_once_on_every_rank(config: EngineConfig, rank_pools: RankPools) -> None:
    model = ModelConfig.from_dir(config.model_dir)
    held = []
    for text in ("sp=2,tp=2", "sp=2,tp=2,shift"):
        plan = parse_plan(text).plan
        executor = ProcessExecutor(config, model, plan, ranks=rank_pools.get(4))
        held.append(executor.start().weight_bytes)
        executor.close()
    assert held[0] == held[1]
