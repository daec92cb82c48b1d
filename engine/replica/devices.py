"""Devices of this machine as the engine needs them: which, how many, how much memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.executors.meeting import may_share_devices
from engine.nvml.reading import DeviceId
from engine.parallel.int8_library import as_held_on_cpu
from engine.spec.config import MOST_THREADS, EngineConfig, ExecutorKind
from engine.spec.inventory import LEAST_CPU_RANKS, MOST_RANKS, Inventory, RankKind
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.processor import num_cores

# Ranks that may share a device, each with an equal part of its memory.
RANKS_OF_SHARED_DEVICE = 8
# The memory limit of a container, where there is one; a number or the word "max".
CGROUP_MEMORY = Path("/sys/fs/cgroup/memory.max")


def with_device_memory(config: EngineConfig) -> EngineConfig:
    """The config with the CUDA device's memory filled in, unless KV memory is set already."""
    is_set = config.num_kv_blocks is not None or config.device_memory_bytes is not None
    if is_set or not is_cuda(config):
        return config
    import torch

    total = torch.cuda.get_device_properties(_index(config.device)).total_memory
    sharers = RANKS_OF_SHARED_DEVICE if may_share_devices(config) else 1
    return replace(config, device_memory_bytes=total // sharers)


def read_inventory(config: EngineConfig) -> Inventory:
    """What plans of an engine of this config may use on this machine.

    On CUDA, as many ranks as there are devices from the first one on, or ``max_devices`` if that is
    fewer; if ranks may share a device, 8 on each. On CPU, ``max_devices`` ranks; by default one per
    core, but at least 8. Paced ranks take no memory here.
    """
    most = min(config.max_devices or MOST_RANKS, MOST_RANKS)
    found = Inventory(
        kind=_kind(config),
        max_ranks=most,
        dtype=config.dtype,
        block_size=config.block_size,
        num_kv_blocks=config.num_kv_blocks,
    )
    match found.kind:
        case RankKind.PACED:
            return found
        case RankKind.CUDA:
            usable = None if config.num_kv_blocks is not None else config.usable_device_bytes
            here = max(1, _num_cuda_devices() - _index(config.device))
            if may_share_devices(config):
                here *= RANKS_OF_SHARED_DEVICE
            return replace(found, max_ranks=min(most, here), device_bytes=usable)
        case RankKind.CPU:
            cores = min(MOST_RANKS, max(LEAST_CPU_RANKS, num_cores()))
            return replace(
                found,
                max_ranks=cores if config.max_devices is None else most,
                kv_bytes=None if config.num_kv_blocks is not None else config.kv_cache_bytes,
                memory_bytes=_memory_bytes(),
            )


def held_model(config: EngineConfig, model: ModelConfig) -> ModelConfig:
    """``model`` with its layers quantised as the config asks. Weights stay so if the device can
    multiply them, and are made plain if not.

    Raises:
        CheckpointError: the checkpoint is quantised in another format.
    """
    if config.quantisation is not None:
        model = model.quantised(config.quantisation)
    kind = _kind(config)
    if kind is RankKind.CPU:
        return as_held_on_cpu(model, config.dtype)
    if model.quantisation is None or kind is not RankKind.CUDA:
        return model
    import torch

    from engine.parallel.quantised import as_held

    dtype = getattr(torch, config.dtype.value)
    return as_held(model, None, dtype, torch.device("cuda", _index(config.device)))


def for_replica(config: EngineConfig, plan: ParallelPlan, *, first_rank: int) -> EngineConfig:
    """The config of one replica of the engine's ``plan``: on CUDA it begins at the device of the
    engine's ``first_rank`` and counts up from there; on CPU each rank has its threads.
    """
    if config.executor is ExecutorKind.SIMULATED:
        return config
    if not is_cuda(config):
        return replace(config, threads_per_rank=threads_per_rank(config, plan.world_size))
    first = _index(config.device) + first_rank
    return replace(config, device=f"cuda:{first}")


def devices_of(config: EngineConfig, ranks: Iterable[int]) -> frozenset[int]:
    """The devices of the engine's ``ranks`` (0, 1, ...), as CUDA counts them; see
    ``engine.executors.process``.
    """
    first = _index(config.device)
    numbers = frozenset(first + rank for rank in ranks)
    if not may_share_devices(config):
        return numbers
    return frozenset(number % max(1, _num_cuda_devices()) for number in numbers)


def list_cuda_devices(config: EngineConfig, num_ranks: int) -> list[DeviceId]:
    """The devices of so many ranks, by the names that CUDA has for them; [] without CUDA.

    Environment variables hide and reorder devices for CUDA only, so CUDA's numbers mean nothing to
    NVML.
    """
    import torch

    try:
        wanted = sorted(devices_of(config, range(num_ranks)))
        return [_device_id(index, torch.cuda.get_device_properties(index)) for index in wanted]
    except (RuntimeError, AssertionError):  # no driver, or a build of torch without CUDA
        return []


def threads_per_rank(config: EngineConfig, num_ranks: int) -> int:
    """Threads of each of ``num_ranks`` CPU ranks: those asked for, else what ``OMP_NUM_THREADS``
    says, else the cores shared evenly.
    """
    if config.threads_per_rank is not None:
        return config.threads_per_rank
    first, _, _ = os.environ.get("OMP_NUM_THREADS", "").partition(",")
    if first.strip().isdecimal() and 1 <= int(first) <= MOST_THREADS:
        return int(first)
    return max(1, num_cores() // num_ranks)


def is_cuda(config: EngineConfig) -> bool:
    """Whether steps run on CUDA devices."""
    return config.device.startswith("cuda")


def _kind(config: EngineConfig) -> RankKind:
    if config.executor is ExecutorKind.SIMULATED:
        return RankKind.PACED
    return RankKind.CUDA if is_cuda(config) else RankKind.CPU


def _index(device: str) -> int:
    _, _, number = device.partition(":")
    return int(number or 0)


def _device_id(index: int, properties: Any) -> DeviceId:
    """Older builds of torch do not tell the bus."""
    uuid = getattr(properties, "uuid", None)
    bus = getattr(properties, "pci_bus_id", None)
    return DeviceId(
        index=index,
        uuid=None if uuid is None else str(uuid),
        pci_bus_id=None
        if bus is None
        else f"{properties.pci_domain_id:08X}:{bus:02X}:{properties.pci_device_id:02X}.0",
    )


def _num_cuda_devices() -> int:
    import torch

    return torch.cuda.device_count()


def _memory_bytes() -> int:
    """Memory of the machine, or of the container this runs in if that is less."""
    import psutil

    total = int(psutil.virtual_memory().total)
    try:
        limit = CGROUP_MEMORY.read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdecimal() else total
