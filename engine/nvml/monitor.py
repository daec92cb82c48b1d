"""Samples of devices beside a run, taken by a thread of their own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from engine.nvml.library import Handle, Nvml
from engine.nvml.reading import DeviceId, DeviceReading
from engine.nvml.watched import WatchedDevice
from engine.spec.energy import EnergyCounters
from engine.spec.errors import DeviceLostError, DriverAbsentError

logger = logging.getLogger(__name__)

INTERVAL_S = 0.25
# Of each device: two minutes at the interval above, about 100 kB.
KEPT_READINGS = 480
# After this many intervals without a sample, the last one no longer counts as current.
STALE_INTERVALS = 8
# A driver that hangs must not hold up whoever asks.
WAIT_S = 1.0
# The longest wait for the first readings: a driver that nothing holds open takes seconds to begin.
FIRST_WAIT_S = 10.0


class DeviceMonitor:
    """Watches devices from :meth:`start` to :meth:`stop`; any thread may ask for readings.

    All calls of the driver are made on the monitor's own thread, so that one that hangs holds up
    nobody. Without a driver nothing is ever read. A device that disappears is left out from then
    on. Each device keeps ``num_kept`` readings. ``list_devices`` is called once, on that thread.
    """

    def __init__(
        self,
        list_devices: Callable[[], Sequence[DeviceId]],
        *,
        interval_s: float = INTERVAL_S,
        num_kept: int = KEPT_READINGS,
        open_driver: Callable[[], Nvml] = Nvml,
    ) -> None:
        self._list_devices = list_devices
        self._interval_s = interval_s
        self._num_kept = num_kept
        self._open_driver = open_driver
        self._watched: tuple[WatchedDevice, ...] = ()
        self._state = threading.Condition()
        self._num_begun = 0
        self._num_done = 0
        self._is_asked = False
        self._is_stopping = False
        self._has_ended = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> DeviceMonitor:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to watch; the first readings come a moment later. A second call does nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="device-monitor", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread; waits for at most one call of the driver. Safe to call twice."""
        with self._state:
            self._is_stopping = True
            self._state.notify_all()
        if self._thread is not None:
            self._thread.join(WAIT_S)

    # -- questions -------------------------------------------------------------------------------

    def latest(self) -> tuple[DeviceReading, ...]:
        """The newest reading of each device, in the order they were listed; none out of date."""
        oldest_s = time.monotonic() - STALE_INTERVALS * self._interval_s - WAIT_S
        with self._state:
            found = [] if self._has_ended else [w.readings[-1] for w in self._watched if w.readings]
        return tuple(reading for reading in found if reading.at_s >= oldest_s)

    def history(self, index: int) -> tuple[DeviceReading, ...]:
        """The readings kept of the device that CUDA counts as ``index``, oldest first."""
        with self._state:
            return tuple(r for w in self._watched if w.index == index for r in w.readings)

    def read_now(self) -> tuple[DeviceReading, ...]:
        """As :meth:`latest`, of a round begun after this call if the driver answers in time."""
        with self._state:
            wanted = self._num_begun + 1
            self._is_asked = True
            self._state.notify_all()
            if self._thread is not None:
                wait_s = WAIT_S if self._num_done else FIRST_WAIT_S
                self._state.wait_for(lambda: self._has_ended or self._num_done >= wanted, wait_s)
        return self.latest()

    # -- on the monitor's thread -----------------------------------------------------------------

    def _run(self) -> None:
        try:
            with self._open_driver() as driver:
                self._find(driver)
                while self._watched and not self._is_stopping:
                    self._sample(driver)
                    self._rest()
        except DriverAbsentError as absent:
            logger.info("devices are not watched: %s", absent)
        finally:
            with self._state:
                self._has_ended = True
                self._state.notify_all()

    def _find(self, driver: Nvml) -> None:
        found = [(device, _find(driver, device)) for device in self._list_devices()]
        watched = tuple(
            WatchedDevice(device.index, handle, num_kept=self._num_kept)
            for device, handle in found
            if handle is not None
        )
        with self._state:
            self._watched = watched

    def _sample(self, driver: Nvml) -> None:
        with self._state:
            self._num_begun += 1
            self._is_asked = False
        readings = {w: w.read(driver) for w in self._watched if not w.is_lost}
        with self._state:
            for watched, reading in readings.items():
                if reading is None:
                    logger.warning("device %d is lost: it is watched no more", watched.index)
                    watched.is_lost = True
                    watched.readings.clear()
                else:
                    watched.readings.append(reading)
            self._num_done = self._num_begun
            self._state.notify_all()

    def _rest(self) -> None:
        with self._state:
            self._state.wait_for(lambda: self._is_stopping or self._is_asked, self._interval_s)


def energy_counters(readings: Sequence[DeviceReading]) -> EnergyCounters:
    """Joules of each device; empty where one of them does not tell its own."""
    joules = {r.uuid: r.energy_j for r in readings if r.energy_j is not None}
    if not readings or len(joules) < len(readings):
        return EnergyCounters()
    # Readings of one round count as simultaneous.
    return EnergyCounters(at_s=max(r.at_s for r in readings), joules=joules)


def _find(driver: Nvml, device: DeviceId) -> Handle | None:
    try:
        return driver.find(device)
    except DeviceLostError:
        return None
