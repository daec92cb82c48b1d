"""Which device is meant, and what it said at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ClockLimit(StrEnum):
    """What holds a device's clocks below what its work would take."""

    POWER_CAP = "power_cap"
    HARDWARE = "hardware"
    SYNC = "sync"
    HEAT = "heat"
    HARDWARE_HEAT = "hardware_heat"
    POWER_BRAKE = "power_brake"

    @property
    def mask(self) -> int:
        """Its bit in NVML's clock event reasons (``nvmlClocksEventReason...``)."""
        match self:
            case ClockLimit.POWER_CAP:
                return 0x04
            case ClockLimit.HARDWARE:
                return 0x08
            case ClockLimit.SYNC:
                return 0x10
            case ClockLimit.HEAT:
                return 0x20
            case ClockLimit.HARDWARE_HEAT:
                return 0x40
            case ClockLimit.POWER_BRAKE:
                return 0x80


@dataclass(frozen=True, kw_only=True)
class DeviceId:
    """A device as CUDA names it, so that whatever hides or reorders devices does not matter.

    ``index`` counts as CUDA does in this process; ``uuid`` has no prefix; ``pci_bus_id`` is as in
    ``00000000:18:00.0``.
    """

    index: int
    uuid: str | None = None
    pci_bus_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class DeviceReading:
    """What one device said at ``at_s`` (``time.monotonic``); None for what it does not tell.

    ``index`` is that of its :class:`DeviceId`, ``uuid`` NVML's (``GPU-...``, ``MIG-...``).
    ``energy_j`` counts since the monitor's start. The two ``..._busy_ratio`` are shares 0..1 of the
    driver's last window in which a kernel ran, and in which memory was read or written.
    """

    index: int
    uuid: str
    at_s: float
    power_w: float | None = None
    energy_j: float | None = None
    busy_ratio: float | None = None
    memory_busy_ratio: float | None = None
    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    temperature_c: float | None = None
    memory_used_bytes: int | None = None
    clock_limits: tuple[ClockLimit, ...] | None = None
