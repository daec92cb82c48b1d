"""Which CUDA device a replica begins at; nothing is asked of a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.replica.devices import for_replica, with_device_memory
from engine.spec.config import EngineConfig


@pytest.mark.parametrize(
    ("device", "index", "expected"),
    [("cuda", 0, "cuda:0"), ("cuda", 2, "cuda:8"), ("cuda:4", 1, "cuda:8"), ("cpu", 3, "cpu")],
)
def test_each_replica_begins_at_its_own_device(device: str, index: int, expected: str) -> None:
    config = EngineConfig(model_dir=Path("unused"), device=device)
    assert for_replica(config, index=index, replica_size=4).device == expected


def test_memory_that_is_set_is_kept_and_a_cpu_has_none_to_fill_in() -> None:
    cpu = EngineConfig(model_dir=Path("unused"))
    assert with_device_memory(cpu) == cpu
    cuda = EngineConfig(model_dir=Path("unused"), device="cuda", device_memory_bytes=10**9)
    assert with_device_memory(cuda) == cuda


@pytest.mark.gpu
def test_a_cuda_device_reports_its_memory() -> None:
    config = with_device_memory(EngineConfig(model_dir=Path("unused"), device="cuda"))
    assert config.device_memory_bytes is not None
    assert config.device_memory_bytes > 2**30
