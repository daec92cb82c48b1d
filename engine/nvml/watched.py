"""One device that a monitor watches: its readings, and its energy since the first of them."""

from __future__ import annotations

import time
from collections import deque

from engine.nvml.library import Handle, Nvml
from engine.nvml.reading import DeviceReading
from engine.spec.errors import DeviceLostError


class WatchedDevice:
    """Reads one device. ``readings`` are the newest ``num_kept``; the monitor appends them."""

    def __init__(self, index: int, handle: Handle, *, num_kept: int) -> None:
        self.index = index
        self.readings: deque[DeviceReading] = deque(maxlen=num_kept)
        self.is_lost = False
        self._handle = handle
        self._energy = _Energy()

    def read(self, driver: Nvml) -> DeviceReading | None:
        """What it says now; None once it is lost."""
        handle, at_s = self._handle, time.monotonic()
        try:
            power_w = driver.power_w(handle)
            energy_j = self._energy.add(at_s, power_w=power_w, counter_j=driver.energy_j(handle))
            busy, memory_busy = driver.busy_ratios(handle) or (None, None)
            return DeviceReading(
                index=self.index,
                uuid=handle.uuid,
                at_s=at_s,
                power_w=power_w,
                energy_j=energy_j,
                busy_ratio=busy,
                memory_busy_ratio=memory_busy,
                sm_clock_hz=driver.sm_clock_hz(handle),
                memory_clock_hz=driver.memory_clock_hz(handle),
                temperature_c=driver.temperature_c(handle),
                memory_used_bytes=driver.memory_used_bytes(handle),
                clock_limits=driver.clock_limits(handle),
            )
        except DeviceLostError:
            return None


class _Energy:
    """Joules since the first reading: the device's counter where it has one, else the integral of
    its power (trapezoids between readings). It never goes back, as a reloaded driver's counter
    does.
    """

    def __init__(self) -> None:
        self._joules: float | None = None
        self._last_counter_j: float | None = None
        self._last_power: tuple[float, float] | None = None

    def add(self, at_s: float, *, power_w: float | None, counter_j: float | None) -> float | None:
        """Take in one reading; None while nothing is known."""
        if counter_j is not None:
            self._grow(
                counter_j - (counter_j if self._last_counter_j is None else self._last_counter_j)
            )
            self._last_counter_j = counter_j
        elif self._last_counter_j is None and power_w is not None:
            last_s, last_w = self._last_power or (at_s, power_w)
            self._grow((at_s - last_s) * (power_w + last_w) / 2)
            self._last_power = (at_s, power_w)
        return self._joules

    def _grow(self, joules: float) -> None:
        self._joules = (self._joules or 0.0) + max(0.0, joules)
