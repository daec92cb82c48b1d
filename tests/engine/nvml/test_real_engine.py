"""An engine on a real device tells of it by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.engine import Engine
from engine.models.create import create_model
from engine.spec.config import EngineConfig
from engine.spec.request import SamplingParams
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


def test_an_engine_tells_power_and_energy_of_its_device(tmp_path: Path) -> None:
    create_model(tmp_path, preset="tiny", seed=0)
    config = EngineConfig(model_dir=tmp_path, device="cuda:0", num_kv_blocks=64)
    with Engine(config) as engine:
        wait_until(lambda: bool(engine.stats().devices))
        before = engine.read_energy()
        engine.generate((5, 6, 7), SamplingParams(max_tokens=50))
        used = before.until(engine.read_energy())
        (device,) = engine.stats().devices
    assert device.index == 0
    if device.energy_j is not None:
        assert used is not None
        assert used.num_devices == 1
        assert used.joules >= 0
