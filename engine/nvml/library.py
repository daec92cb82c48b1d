"""The part of NVML that is read here, in SI units; no setting is ever touched.

NVML is reached through ``pynvml`` (nvidia-ml-py). Devices differ in what they tell: what one
refuses is None, and the rest is still told.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from engine.nvml.reading import ClockLimit, DeviceId
from engine.spec.errors import DeviceLostError, DriverAbsentError

# Codes of NVML (nvmlReturn_t) after which a device answers nothing until it is reset.
LOST_CODES = (15, 16)
# nvmlClockType_t, nvmlTemperatureSensors_t.
SM_CLOCK, MEMORY_CLOCK, GPU_SENSOR = 1, 2, 0


class Library(Protocol):
    """``pynvml``, or what behaves as it does.

    Its functions are called by name, since versions differ in which they have; each raises
    ``NVMLError``, whose ``value`` is NVML's code.
    """

    NVMLError: type[Exception]

    def nvmlInit(self) -> None: ...  # noqa: N802 - its name

    def nvmlShutdown(self) -> None: ...  # noqa: N802 - its name


@dataclass(frozen=True, kw_only=True)
class Handle:
    """A device found. ``is_slice``: a part of a GPU (MIG). ``is_cut``: a whole GPU that is cut into
    such parts, of which ours is one.
    """

    pointer: Any
    uuid: str
    is_slice: bool = False
    is_cut: bool = False


class Nvml:
    """NVML while it is open; close it, or use ``with``. Any thread may ask.

    Queries return None where the device refuses them (not supported, no permission, unknown), and
    raise DeviceLostError where it has gone.
    """

    def __init__(self, library: Library | None = None) -> None:
        """Raises DriverAbsentError: no library, no driver, or no right to use it, in its words."""
        if library is None:
            library = _import_library()
        self._library = library
        try:
            library.nvmlInit()
        except library.NVMLError as error:
            raise DriverAbsentError(str(error)) from error

    def __enter__(self) -> Nvml:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Shut NVML down; others in this process that opened it keep it."""
        # If the driver went away meanwhile, nothing is left to free.
        with suppress(self._library.NVMLError):
            self._library.nvmlShutdown()

    # -- finding devices -------------------------------------------------------------------------

    def list_handles(self) -> list[Handle]:
        """Every GPU, in NVML's order, which is not CUDA's; those that are lost are left out."""
        found = []
        for index in range(self.ask("nvmlDeviceGetCount") or 0):
            with suppress(DeviceLostError):
                pointer = self.ask("nvmlDeviceGetHandleByIndex", index)
                found += [] if pointer is None else [self._handle(pointer)]
        return found

    def find(self, device: DeviceId) -> Handle | None:
        """The device that CUDA means; None where NVML knows none such.

        A slice of a GPU has a UUID of its own. If CUDA tells the whole GPU's instead, MIG mode says
        that ours is only a part of it.
        """
        for prefix in ("GPU-", "MIG-"):
            if device.uuid is not None:
                pointer = self.ask("nvmlDeviceGetHandleByUUID", prefix + device.uuid)
                if pointer is not None:
                    return self._handle(pointer)
        if device.pci_bus_id is not None:
            pointer = self.ask("nvmlDeviceGetHandleByPciBusId", device.pci_bus_id)
            return None if pointer is None else self._handle(pointer)
        return None

    def _handle(self, pointer: Any) -> Handle:
        modes = self.ask("nvmlDeviceGetMigMode", pointer)
        return Handle(
            pointer=pointer,
            uuid=_text(self.ask("nvmlDeviceGetUUID", pointer)),
            is_slice=bool(_plain(self.ask("nvmlDeviceIsMigDeviceHandle", pointer))),
            is_cut=bool(modes and modes[0]),
        )

    # -- one device ------------------------------------------------------------------------------

    def name(self, handle: Handle) -> str:
        return _text(self.ask("nvmlDeviceGetName", handle.pointer))

    def power_w(self, handle: Handle) -> float | None:
        """Watts of the whole board; newer GPUs tell the mean of the last second."""
        return self._own(handle, "nvmlDeviceGetPowerUsage", 1e-3)

    def energy_j(self, handle: Handle) -> float | None:
        """Joules since the driver was loaded."""
        return self._own(handle, "nvmlDeviceGetTotalEnergyConsumption", 1e-3)

    def busy_ratios(self, handle: Handle) -> tuple[float, float] | None:
        """Shares 0..1 of the driver's last window: some kernel ran; memory was in use."""
        rates = self.ask("nvmlDeviceGetUtilizationRates", handle.pointer)
        return None if rates is None else (rates.gpu / 100, rates.memory / 100)

    def sm_clock_hz(self, handle: Handle) -> float | None:
        return self._scaled(1e6, "nvmlDeviceGetClockInfo", handle.pointer, SM_CLOCK)

    def memory_clock_hz(self, handle: Handle) -> float | None:
        return self._scaled(1e6, "nvmlDeviceGetClockInfo", handle.pointer, MEMORY_CLOCK)

    def temperature_c(self, handle: Handle) -> float | None:
        return self._scaled(1.0, "nvmlDeviceGetTemperature", handle.pointer, GPU_SENSOR)

    def memory_used_bytes(self, handle: Handle) -> int | None:
        """Bytes in use: those of a slice alone; None for a GPU that is cut, as its figure counts
        the others' too."""
        memory = self.ask("nvmlDeviceGetMemoryInfo", handle.pointer)
        return None if memory is None or handle.is_cut else int(memory.used)

    def memory_bytes(self, handle: Handle) -> int:
        """All of its memory; 0 where it does not tell."""
        memory = self.ask("nvmlDeviceGetMemoryInfo", handle.pointer)
        return 0 if memory is None else int(memory.total)

    def clock_limits(self, handle: Handle) -> tuple[ClockLimit, ...] | None:
        """What slows it now; empty where nothing does."""
        mask = self.ask("nvmlDeviceGetCurrentClocksEventReasons", handle.pointer)
        if mask is None:  # the name before driver 535
            mask = self.ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle.pointer)
        return None if mask is None else tuple(w for w in ClockLimit if _plain(mask) & w.mask)

    # -- asking ----------------------------------------------------------------------------------

    def ask(self, function: str, *arguments: Any) -> Any:
        """What NVML answers; None where it refuses, or this version has no such function.

        Raises:
            DeviceLostError: the device has gone.
        """
        call = getattr(self._library, function, None)
        if call is None:
            return None
        try:
            return call(*arguments)
        except self._library.NVMLError as error:
            if getattr(error, "value", None) in LOST_CODES:
                raise DeviceLostError(str(error)) from error
            return None

    def _own(self, handle: Handle, function: str, unit: float) -> float | None:
        """A figure of whole GPUs only: a part's would count the work of others."""
        return (
            None
            if handle.is_slice or handle.is_cut
            else self._scaled(unit, function, handle.pointer)
        )

    def _scaled(self, unit: float, function: str, *arguments: Any) -> float | None:
        value = self.ask(function, *arguments)
        return None if value is None else float(_plain(value)) * unit


def _import_library() -> Library:
    try:
        library: Library = import_module("pynvml")
    except ImportError as error:
        raise DriverAbsentError("pynvml is not installed (nvidia-ml-py)") from error
    return library


def _plain(value: Any) -> Any:
    """A number of Python's; some functions answer with one of C's."""
    return getattr(value, "value", value)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")
