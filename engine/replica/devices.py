"""Devices of this machine as the engine needs them: which one, and how much memory it has."""

from __future__ import annotations

from dataclasses import replace

from engine.spec.config import EngineConfig


def with_device_memory(config: EngineConfig) -> EngineConfig:
    """The config with the CUDA device's memory filled in, unless KV memory is set already."""
    is_set = config.num_kv_blocks is not None or config.device_memory_bytes is not None
    if is_set or not is_cuda(config):
        return config
    import torch

    total = torch.cuda.get_device_properties(_index(config.device)).total_memory
    return replace(config, device_memory_bytes=total)


def for_replica(config: EngineConfig, *, index: int, replica_size: int) -> EngineConfig:
    """The config of one replica: on CUDA it begins at its own device, ranks count up from there."""
    if not is_cuda(config):
        return config
    first = _index(config.device) + index * replica_size
    return replace(config, device=f"cuda:{first}")


def is_cuda(config: EngineConfig) -> bool:
    """Whether steps run on CUDA devices."""
    return config.device.startswith("cuda")


def _index(device: str) -> int:
    _, _, number = device.partition(":")
    return int(number or 0)
