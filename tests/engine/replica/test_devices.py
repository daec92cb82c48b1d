"""Which CUDA device a replica begins at, and what plans may use of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from engine.replica.devices import (
    devices_of,
    for_replica,
    list_cuda_devices,
    read_inventory,
    with_device_memory,
)
from engine.spec.config import EngineConfig, ExecutorKind
from engine.spec.errors import EngineError
from engine.spec.inventory import MOST_RANKS, RankKind
from engine.spec.plan import ParallelPlan


@pytest.mark.parametrize(
    ("device", "index", "expected"),
    [("cuda", 0, "cuda:0"), ("cuda", 2, "cuda:8"), ("cuda:4", 1, "cuda:8"), ("cpu", 3, "cpu")],
)
def test_each_replica_begins_at_its_own_device(device: str, index: int, expected: str) -> None:
    config = EngineConfig(model_dir=Path("unused"), device=device)
    assert for_replica(config, ParallelPlan(dp=4, tp=4), first_rank=4 * index).device == expected


def test_ranks_share_the_cores_unless_a_number_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    config = EngineConfig(model_dir=Path("unused"))
    alone, crowded = ParallelPlan(), ParallelPlan(dp=cores, tp=2)
    assert for_replica(config, alone, first_rank=0).threads_per_rank == cores
    assert for_replica(config, crowded, first_rank=0).threads_per_rank == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert for_replica(config, crowded, first_rank=0).threads_per_rank == 3
    asked = EngineConfig(model_dir=Path("unused"), threads_per_rank=5)
    assert for_replica(asked, alone, first_rank=0).threads_per_rank == 5


@pytest.mark.parametrize("count", [0, -1, 10**6])
def test_a_number_of_threads_that_cannot_be_is_refused(count: int) -> None:
    with pytest.raises(EngineError, match=f"threads_per_rank={count}"):
        EngineConfig(model_dir=Path("unused"), threads_per_rank=count)


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


def test_ranks_count_up_from_the_first_device_and_sharers_over_again() -> None:
    config = EngineConfig(model_dir=Path("unused"), device="cuda:2")
    assert devices_of(config, range(3)) == {2, 3, 4}
    shared = EngineConfig(model_dir=Path("unused"), device="cuda:0", collectives="gloo")
    count = max(1, torch.cuda.device_count())
    assert devices_of(shared, range(8 * count)) == set(range(count))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_cuda_there_are_no_devices_to_watch() -> None:
    assert list_cuda_devices(EngineConfig(model_dir=Path("unused"), device="cuda"), 4) == []


@pytest.mark.gpu
def test_a_cuda_device_reports_its_memory() -> None:
    config = with_device_memory(EngineConfig(model_dir=Path("unused"), device="cuda"))
    assert config.device_memory_bytes is not None
    assert config.device_memory_bytes > 2**30
    found = read_inventory(EngineConfig(model_dir=Path("unused"), device="cuda", max_devices=999))
    assert (found.kind, found.max_ranks) == (RankKind.CUDA, torch.cuda.device_count())
