"""What the readings of one device over some time come to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from engine.nvml.reading import ClockLimit, DeviceReading


@dataclass(frozen=True, kw_only=True)
class DeviceSummary:
    """Means over ``seconds``; None for what the device does not tell.

    ``limited_ratio`` has the share of readings in which each reason held its clocks down.
    """

    index: int
    seconds: float
    joules: float | None
    mean_w: float | None
    busy_ratio: float | None
    memory_busy_ratio: float | None
    sm_clock_hz: float | None
    memory_clock_hz: float | None
    highest_temperature_c: float | None
    highest_memory_used_bytes: float | None
    limited_ratio: dict[str, float]

    @classmethod
    def of(cls, readings: Sequence[DeviceReading]) -> DeviceSummary:
        """Readings of one device, oldest first, at least one."""
        first, last = readings[0], readings[-1]
        seconds = last.at_s - first.at_s
        energies = (first.energy_j, last.energy_j)
        joules = None if None in energies else (last.energy_j or 0.0) - (first.energy_j or 0.0)
        powers = _told(readings, lambda r: r.power_w)
        temperatures = _told(readings, lambda r: r.temperature_c)
        return cls(
            index=first.index,
            seconds=seconds,
            joules=joules,
            mean_w=joules / seconds if joules and seconds else _mean(powers),
            busy_ratio=_mean(_told(readings, lambda r: r.busy_ratio)),
            memory_busy_ratio=_mean(_told(readings, lambda r: r.memory_busy_ratio)),
            sm_clock_hz=_mean(_told(readings, lambda r: r.sm_clock_hz)),
            memory_clock_hz=_mean(_told(readings, lambda r: r.memory_clock_hz)),
            highest_temperature_c=max(temperatures, default=None),
            highest_memory_used_bytes=max(
                _told(readings, lambda r: r.memory_used_bytes), default=None
            ),
            limited_ratio={
                limit.value: share for limit in ClockLimit if (share := _share(readings, limit)) > 0
            },
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _told(
    readings: Sequence[DeviceReading], value: Callable[[DeviceReading], float | None]
) -> list[float]:
    return [found for reading in readings if (found := value(reading)) is not None]


def _mean(values: list[float]) -> float | None:
    return fmean(values) if values else None


def _share(readings: Sequence[DeviceReading], limit: ClockLimit) -> float:
    told = [r.clock_limits for r in readings if r.clock_limits is not None]
    return sum(limit in limits for limits in told) / len(told) if told else 0.0
