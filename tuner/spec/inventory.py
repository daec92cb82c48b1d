"""The devices of this machine, through NVML; empty where there is no driver."""

from __future__ import annotations

from dataclasses import dataclass

from engine.nvml.library import Nvml
from engine.spec.errors import DriverAbsentError


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
    try:
        with Nvml() as driver:
            return [
                Device(
                    index=index, name=driver.name(handle), memory_bytes=driver.memory_bytes(handle)
                )
                for index, handle in enumerate(driver.list_handles())
            ]
    except DriverAbsentError:
        return []
