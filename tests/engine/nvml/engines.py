"""Engines whose devices are watched through a driver that behaves as NVML does."""

from __future__ import annotations

from engine.nvml.library import Nvml
from engine.nvml.monitor import DeviceMonitor
from engine.nvml.reading import DeviceId
from tests.engine.nvml.fake_nvml import FakeGpu, FakeNvml


def gpus(count: int) -> list[FakeGpu]:
    return [FakeGpu(uuid=f"GPU-{n}", bus_id=f"bus-{n}") for n in range(count)]


def monitor_of(library: FakeNvml, *, interval_s: float = 0.005) -> DeviceMonitor:
    """A monitor of every GPU of ``library``, in CUDA's order the reverse of NVML's."""
    names = [gpu.uuid.partition("-")[2] for gpu in reversed(library.gpus)]
    devices = [DeviceId(index=index, uuid=name) for index, name in enumerate(names)]
    return DeviceMonitor(lambda: devices, interval_s=interval_s, open_driver=lambda: Nvml(library))
