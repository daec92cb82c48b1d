"""Which CUDA device a replica begins at, and what plans may use of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.replica.devices import for_replica, read_inventory, with_device_memory
from engine.spec.config import EngineConfig, ExecutorKind
from engine.spec.inventory import MOST_RANKS, RankKind


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


def test_on_cpu_a_nodes_worth_of_ranks_may_start_or_as_many_as_are_asked_for() -> None:
    config = EngineConfig(model_dir=Path("unused"))
    found = read_inventory(config)
    assert (found.kind, found.kv_bytes) == (RankKind.CPU, config.kv_cache_bytes)
    assert 8 <= found.max_ranks <= MOST_RANKS
    assert found.memory_bytes is not None
    asked = read_inventory(EngineConfig(model_dir=Path("unused"), max_devices=3))
    assert asked.max_ranks == 3


def test_paced_ranks_take_no_memory_here() -> None:
    config = EngineConfig(model_dir=Path("unused"), executor=ExecutorKind.SIMULATED, max_devices=16)
    found = read_inventory(config)
    assert (found.kind, found.max_ranks, found.memory_bytes) == (RankKind.PACED, 16, None)


@pytest.mark.gpu
def test_a_cuda_device_reports_its_memory() -> None:
    config = with_device_memory(EngineConfig(model_dir=Path("unused"), device="cuda"))
    assert config.device_memory_bytes is not None
    assert config.device_memory_bytes > 2**30
    found = read_inventory(EngineConfig(model_dir=Path("unused"), device="cuda", max_devices=999))
    assert (found.kind, found.max_ranks) == (RankKind.CUDA, torch.cuda.device_count())
