"""NVML as it behaves, without devices: ``pynvml``'s functions and its own errors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml

NOT_SUPPORTED = pynvml.NVML_ERROR_NOT_SUPPORTED
NO_PERMISSION = pynvml.NVML_ERROR_NO_PERMISSION
GPU_IS_LOST = pynvml.NVML_ERROR_GPU_IS_LOST


@dataclass(kw_only=True, eq=False)
class FakeGpu:
    """One GPU. ``refuses`` gives the code with which a function answers; ``lost``: all of them do.

    ``links`` are NVLinks: per link the bus id of the GPU at its other end, or None for a switch.
    Each has ``link_mb_per_s``, told per link or (``has_common_speed``) once for all.
    """

    uuid: str
    bus_id: str
    power_mw: int = 300_000
    energy_mj: int = 5_000_000
    events: int = 0
    is_mig: bool = False
    is_slice: bool = False
    lost: bool = False
    refuses: dict[str, int] = field(default_factory=dict)
    name: str = "NVIDIA H100 80GB HBM3"
    links: list[str | None] = field(default_factory=list)
    link_mb_per_s: int = 26_562
    has_common_speed: bool = False
    level: int = 50
    p2p_status: int = 0


class FakeNvml:
    """Behaves as the module ``pynvml`` on a machine with ``gpus``; ``init_error``: as without.

    The order of ``gpus`` is NVML's, by bus. ``on_call`` runs before each function.
    """

    NVMLError = pynvml.NVMLError

    def __init__(
        self,
        *gpus: FakeGpu,
        init_error: int | None = None,
        on_call: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.gpus = list(gpus)
        self.init_error = init_error
        self.num_open = 0
        self.threads: set[str] = set()
        self._on_call = on_call

    def nvmlInit(self) -> None:
        if self.init_error is not None:
            raise pynvml.NVMLError(self.init_error)
        self.num_open += 1

    def nvmlShutdown(self) -> None:
        self.num_open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return sum(not gpu.is_slice for gpu in self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        return self._live([gpu for gpu in self.gpus if not gpu.is_slice][index])

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> FakeGpu:
        return self._one(lambda gpu: gpu.uuid == uuid)

    def nvmlDeviceGetHandleByPciBusId(self, bus_id: str) -> FakeGpu:
        return self._one(lambda gpu: gpu.bus_id == bus_id and not gpu.is_slice)

    def _one(self, is_it: Callable[[FakeGpu], bool]) -> FakeGpu:
        for gpu in self.gpus:
            if is_it(gpu):
                return self._live(gpu)
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def _live(self, gpu: FakeGpu) -> FakeGpu:
        if gpu.lost:
            raise pynvml.NVMLError(GPU_IS_LOST)
        return gpu

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """A query of one device, refused as that device refuses it."""
        answer = getattr(_Answers, name, None)
        if answer is None:
            raise AttributeError(name)

        def ask(gpu: FakeGpu, *rest: Any) -> Any:
            assert self.num_open > 0, f"{name} after nvmlShutdown"
            self.threads.add(threading.current_thread().name)
            self._on_call(name)
            self._live(gpu)
            if name in gpu.refuses:
                raise pynvml.NVMLError(gpu.refuses[name])
            return answer(gpu, *rest)

        return ask


class _Answers:
    """What devices say, in NVML's own units."""

    @staticmethod
    def nvmlDeviceGetUUID(gpu: FakeGpu) -> str:
        return gpu.uuid

    @staticmethod
    def nvmlDeviceGetName(gpu: FakeGpu) -> str:
        return gpu.name

    @staticmethod
    def nvmlDeviceIsMigDeviceHandle(gpu: FakeGpu) -> Any:
        return SimpleNamespace(value=int(gpu.is_slice))

    @staticmethod
    def nvmlDeviceGetMigMode(gpu: FakeGpu) -> list[int]:
        return [int(gpu.is_mig), int(gpu.is_mig)]

    @staticmethod
    def nvmlDeviceGetPowerUsage(gpu: FakeGpu) -> int:
        return gpu.power_mw

    @staticmethod
    def nvmlDeviceGetTotalEnergyConsumption(gpu: FakeGpu) -> int:
        return gpu.energy_mj

    @staticmethod
    def nvmlDeviceGetUtilizationRates(gpu: FakeGpu) -> Any:
        return SimpleNamespace(gpu=97, memory=40)

    @staticmethod
    def nvmlDeviceGetClockInfo(gpu: FakeGpu, kind: int) -> int:
        return {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 2619}[kind]

    @staticmethod
    def nvmlDeviceGetTemperature(gpu: FakeGpu, sensor: int) -> int:
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return 61

    @staticmethod
    def nvmlDeviceGetMemoryInfo(gpu: FakeGpu) -> Any:
        return SimpleNamespace(total=80 * 2**30, used=70 * 2**30, free=10 * 2**30)

    @staticmethod
    def nvmlDeviceGetCurrentClocksEventReasons(gpu: FakeGpu) -> int:
        return gpu.events

    @staticmethod
    def nvmlDeviceGetPciInfo(gpu: FakeGpu) -> Any:
        return SimpleNamespace(busId=gpu.bus_id)

    @staticmethod
    def nvmlDeviceGetNvLinkState(gpu: FakeGpu, link: int) -> int:
        if link >= len(gpu.links):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return 1

    @staticmethod
    def nvmlDeviceGetNvLinkRemoteDeviceType(gpu: FakeGpu, link: int) -> int:
        is_switch = gpu.links[link] is None
        return pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH if is_switch else 0

    @staticmethod
    def nvmlDeviceGetNvLinkRemotePciInfo(gpu: FakeGpu, link: int) -> Any:
        return SimpleNamespace(busId=gpu.links[link])

    @staticmethod
    def nvmlDeviceGetFieldValues(gpu: FakeGpu, fields: list[Any]) -> list[Any]:
        """As NVML: it answers, and each field may be refused for itself."""
        assert len(fields) == 1
        is_common = fields[0] == pynvml.NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON
        is_told = is_common == gpu.has_common_speed
        value = SimpleNamespace(uiVal=gpu.link_mb_per_s if is_told else 0)
        return [SimpleNamespace(nvmlReturn=0 if is_told else NOT_SUPPORTED, value=value)]

    @staticmethod
    def nvmlDeviceGetMaxPcieLinkGeneration(gpu: FakeGpu) -> int:
        return 5

    @staticmethod
    def nvmlDeviceGetMaxPcieLinkWidth(gpu: FakeGpu) -> int:
        return 16

    @staticmethod
    def nvmlDeviceGetTopologyCommonAncestor(gpu: FakeGpu, other: FakeGpu) -> int:
        return gpu.level

    @staticmethod
    def nvmlDeviceGetP2PStatus(gpu: FakeGpu, other: FakeGpu, index: int) -> int:
        assert index == 0  # NVML_P2P_CAPS_INDEX_READ, which pynvml has as a tuple
        return gpu.p2p_status
