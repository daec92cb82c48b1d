"""An engine of ours as the target of trials."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.models.create import create_model
from engine.spec.config import EngineConfig, ExecutorKind
from engine.spec.errors import RankError
from engine.spec.measurement import Fidelity, Measurement
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from tests.contracts.tuning_target import TuningTargetContract
from tests.engine.hanging_ranks import living_ranks, starts_hang
from tests.engine.paced import ConstantTimer
from tuner.load.live import LiveEngine
from tuner.workload.parse import parse_workload

# Longer than any test may take.
FOR_EVER_S = 3600.0


class TestLiveEngine(TuningTargetContract):
    @pytest.fixture
    def target(self, tmp_path: Path) -> Iterator[LiveEngine]:
        create_model(tmp_path / "model", preset="tiny")
        config = EngineConfig(
            model_dir=tmp_path / "model", executor=ExecutorKind.SIMULATED, num_kv_blocks=512
        )
        with LiveEngine(config, timer_factory=ConstantTimer) as engine:
            yield engine

    @pytest.fixture
    def refused(self) -> Settings:
        return Settings(plan=ParallelPlan(tp=64))


@pytest.mark.parametrize("is_first", [True, False])
def test_a_trial_that_should_stop_while_ranks_start_does_so_and_leaves_none(
    tmp_path: Path, is_first: bool
) -> None:
    create_model(tmp_path / "model", preset="tiny")
    one, two = (Settings(plan=ParallelPlan(tp=tp)) for tp in (1, 2))
    config = EngineConfig(
        model_dir=tmp_path / "model",
        executor=ExecutorKind.PROCESS,
        num_kv_blocks=64,
        max_devices=2,
        start_timeout_s=FOR_EVER_S,
        envelope=two.caps,
    )
    workload = parse_workload("poisson:rate=50,input=8,output=4,requests=4", seed=0)

    def measure(settings: Settings, should_stop: Callable[[], bool]) -> Measurement:
        return engine.measure(
            settings,
            workload,
            seed=0,
            timeout_s=60.0,
            fidelity=Fidelity.PROBED,
            should_stop=should_stop,
        )

    before = living_ranks()
    with LiveEngine(config) as engine:
        if not is_first:
            measure(one, lambda: False)
        with starts_hang() as stopped, pytest.raises(RankError, match="ended while it started"):
            measure(two, lambda: bool(stopped))
        assert living_ranks() == before
