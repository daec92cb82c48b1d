"""Every executor passes the same suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.executors.clock import VirtualClock, WallClock
from engine.executors.inline import InlineExecutor
from engine.executors.process import ProcessExecutor
from engine.executors.protocol import Clock
from engine.executors.simulated import SimulatedExecutor
from engine.spec.config import EngineConfig
from engine.spec.model import DType, ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.steps import StepShape
from tests.contracts.executor import (
    BLOCK_SIZE,
    NUM_BLOCKS,
    VOCAB_SIZE,
    ExecutorContract,
    MakeExecutor,
)
from tests.engine.rank_pools import RankPools


class ConstantTimer:
    """Every stage takes 0.2 ms."""

    def __init__(self, plan: ParallelPlan) -> None:
        self._plan = plan

    def stage_seconds(self, shape: StepShape) -> tuple[float, ...]:
        return (2e-4,) * self._plan.pp

    def host_seconds(self, shape: StepShape) -> float:
        return 0.0


def config_of(model_dir: Path) -> EngineConfig:
    return EngineConfig(
        model_dir=model_dir,
        dtype=DType.FLOAT64,
        block_size=BLOCK_SIZE,
        num_kv_blocks=NUM_BLOCKS,
        step_timeout_s=30.0,
    )


@pytest.mark.parametrize("clock", [VirtualClock(), WallClock()], ids=["virtual", "wall"])
@pytest.mark.parametrize(
    "plan",
    [ParallelPlan(tp=8), ParallelPlan(pp=2, sp=2, tp=2, shift=True)],
    ids=str,
)
class TestSimulated(ExecutorContract):
    @pytest.fixture
    def make(self, plan: ParallelPlan, clock: Clock) -> MakeExecutor:
        return lambda: SimulatedExecutor(
            plan=plan,
            model_vocab_size=VOCAB_SIZE,
            num_kv_blocks=NUM_BLOCKS,
            timer=ConstantTimer(plan),
            clock=clock,
        )


@pytest.mark.parametrize("plan", [ParallelPlan(), ParallelPlan(pp=2)], ids=str)
class TestSimulatedWithInputs(ExecutorContract):
    @pytest.fixture
    def make(self, plan: ParallelPlan) -> MakeExecutor:
        return lambda: SimulatedExecutor(
            plan=plan,
            model_vocab_size=VOCAB_SIZE,
            num_kv_blocks=NUM_BLOCKS,
            timer=ConstantTimer(plan),
            clock=WallClock(),
            applies_inputs=True,
        )


@pytest.mark.parametrize("plan", [ParallelPlan()], ids=str)
class TestInline(ExecutorContract):
    @pytest.fixture
    def make(self, plan: ParallelPlan, tiny_model_dir: Path) -> MakeExecutor:
        model = ModelConfig.from_dir(tiny_model_dir)
        return lambda: InlineExecutor(config_of(tiny_model_dir), model, plan)


@pytest.mark.parametrize("plan", [ParallelPlan(sp=2, shift=True), ParallelPlan(pp=2)], ids=str)
class TestProcess(ExecutorContract):
    @pytest.fixture
    def make(self, plan: ParallelPlan, tiny_model_dir: Path, rank_pools: RankPools) -> MakeExecutor:
        model = ModelConfig.from_dir(tiny_model_dir)
        config = config_of(tiny_model_dir)
        return lambda: ProcessExecutor(config, model, plan, ranks=rank_pools.get(plan.replica_size))
