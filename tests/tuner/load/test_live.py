"""An engine of ours as the target of trials."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.models.create import create_model
from engine.spec.config import EngineConfig, ExecutorKind
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from tests.contracts.tuning_target import TuningTargetContract
from tests.engine.paced import ConstantTimer
from tuner.load.live import LiveEngine


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
