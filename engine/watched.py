"""The devices of an engine's ranks, as their driver tells of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from engine.nvml.monitor import DeviceMonitor, energy_counters
from engine.nvml.reading import DeviceReading
from engine.replica.devices import devices_of, list_cuda_devices
from engine.spec.config import EngineConfig
from engine.spec.energy import EnergyCounters
from engine.spec.inventory import Inventory, RankKind


class WatchedDevices:
    """Watches devices from :meth:`start` to :meth:`stop`: on CUDA the engine's own, elsewhere only
    those of a ``monitor`` that is given. It reports the devices of ``ranks`` (0, 1, ...), which are
    in use; the engine may leave others unused.
    """

    def __init__(
        self, config: EngineConfig, inventory: Inventory, monitor: DeviceMonitor | None
    ) -> None:
        self._config = config
        self._monitor = monitor or DeviceMonitor(
            partial(list_cuda_devices, config, inventory.max_ranks)
        )
        self._is_wanted = monitor is not None or inventory.kind is RankKind.CUDA

    def start(self) -> None:
        if self._is_wanted:
            self._monitor.start()

    def stop(self) -> None:
        self._monitor.stop()

    def latest(self, ranks: Sequence[int]) -> tuple[DeviceReading, ...]:
        """What was read last."""
        return self._of_ranks(self._monitor.latest(), ranks)

    def read_energy(self, ranks: Sequence[int]) -> EnergyCounters:
        """Joules so far; empty unless the driver reports all devices. Waits for its answer."""
        readings = self._of_ranks(self._monitor.read_now(), ranks)
        is_whole = len(readings) == len(devices_of(self._config, ranks))
        return energy_counters(readings) if is_whole else EnergyCounters()

    def _of_ranks(
        self, readings: tuple[DeviceReading, ...], ranks: Sequence[int]
    ) -> tuple[DeviceReading, ...]:
        ours = devices_of(self._config, ranks)
        return tuple(reading for reading in readings if reading.index in ours)
