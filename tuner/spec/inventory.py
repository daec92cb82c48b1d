"""The devices of this machine, through NVML; empty where there is no driver."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Device:
    """One accelerator. ``kind`` is ``cuda``."""

    index: int
    name: str
    memory_bytes: int
    kind: str = "cuda"


def list_devices() -> list[Device]:
    """Every device NVML shows, in its order; [] without a driver or a device. Never raises.

    Devices are only read: NVML is opened and shut down again, no setting is touched.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [_device(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def _device(index: int) -> Device:
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    name = pynvml.nvmlDeviceGetName(handle)
    return Device(
        index=index,
        name=name.decode() if isinstance(name, bytes) else str(name),
        memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
    )
