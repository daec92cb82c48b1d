"""How the devices of this machine are joined: NVLink, PCIe, and who reaches whom directly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import combinations
from typing import Any

from engine.nvml.library import Handle, Nvml

# NVML's: links a device may have at most; a link's other end (nvmlIntNvLinkDeviceType_t); fields of
# nvmlDeviceGetFieldValues, in MB/s and direction; a status of nvmlDeviceGetP2PStatus.
MOST_LINKS = 36
REMOTE_SWITCH = 2
FIELD_LINK_SPEED, FIELD_COMMON_SPEED = 164, 90
P2P_READ, P2P_OK = 0, 0
# Bytes per second of one lane and direction, by generation, after line coding.
PCIE_LANE_BYTES_PER_S = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}


class Path(StrEnum):
    """The nearest thing that two devices have in common (nvmlGpuTopologyLevel_t)."""

    BOARD = "board"
    PCIE_SWITCH = "pcie_switch"
    PCIE_SWITCHES = "pcie_switches"
    HOST_BRIDGE = "host_bridge"
    NUMA_NODE = "numa_node"
    SYSTEM = "system"


LEVELS = {
    0: Path.BOARD,
    10: Path.PCIE_SWITCH,
    20: Path.PCIE_SWITCHES,
    30: Path.HOST_BRIDGE,
    40: Path.NUMA_NODE,
    50: Path.SYSTEM,
}


@dataclass(frozen=True, kw_only=True)
class JoinedDevice:
    """One device, by its place in NVML's order, and its links; None for what it does not tell.

    ``nvlink_bytes_per_s`` are those of all its active NVLinks together, per direction;
    ``num_to_switch`` of them end at a switch. Its PCIe rate is the most that device and slot can
    do.
    """

    index: int
    name: str
    uuid: str
    memory_bytes: int
    num_nvlinks: int
    num_to_switch: int
    nvlink_bytes_per_s: float | None
    pcie_generation: int | None
    pcie_width: int | None

    @property
    def pcie_bytes_per_s(self) -> float | None:
        """Per direction."""
        lane = PCIE_LANE_BYTES_PER_S.get(self.pcie_generation or 0)
        return lane * self.pcie_width if lane and self.pcie_width else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"pcie_bytes_per_s": self.pcie_bytes_per_s}


@dataclass(frozen=True, kw_only=True)
class JoinedPair:
    """Two devices: NVLinks between them (through a switch: those of the one with fewer), the way
    by PCIe, and whether one may read the other's memory without the host.
    """

    first: int
    second: int
    num_nvlinks: int
    path: Path | None
    reads_directly: bool | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Joined:
    """Every device of this machine, and every pair of them."""

    devices: tuple[JoinedDevice, ...]
    pairs: tuple[JoinedPair, ...]


def read_topology(driver: Nvml) -> Joined:
    """What the driver knows of links.

    Raises:
        DeviceLostError: a device went while it was asked.
    """
    handles = driver.list_handles()
    links = [_Links.read(driver, handle) for handle in handles]
    devices = tuple(
        _device(driver, index, handle, found)
        for index, (handle, found) in enumerate(zip(handles, links, strict=True))
    )
    pairs = tuple(
        _pair(driver, handles, links, a, b) for a, b in combinations(range(len(handles)), 2)
    )
    return Joined(devices=devices, pairs=pairs)


@dataclass(frozen=True, kw_only=True)
class _Links:
    """NVLinks of one device: by the bus id of the GPU at the other end, and to switches."""

    bus_id: str
    to_gpus: Counter[str]
    num_to_switch: int
    bytes_per_s: float | None

    @classmethod
    def read(cls, driver: Nvml, handle: Handle) -> _Links:
        at = handle.pointer
        active = [n for n in range(MOST_LINKS) if driver.ask("nvmlDeviceGetNvLinkState", at, n)]
        ends = {n: driver.ask("nvmlDeviceGetNvLinkRemoteDeviceType", at, n) for n in active}
        others = [n for n in active if ends[n] != REMOTE_SWITCH]
        remote = [_bus_id(driver.ask("nvmlDeviceGetNvLinkRemotePciInfo", at, n)) for n in others]
        return cls(
            bus_id=_bus_id(driver.ask("nvmlDeviceGetPciInfo", at)),
            to_gpus=Counter(remote),
            num_to_switch=len(active) - len(others),
            bytes_per_s=_speed(driver, at, active),
        )

    def count_to(self, other: _Links) -> int:
        direct = self.to_gpus[other.bus_id] if other.bus_id else 0
        return direct or min(self.num_to_switch, other.num_to_switch)


def _device(driver: Nvml, index: int, handle: Handle, links: _Links) -> JoinedDevice:
    return JoinedDevice(
        index=index,
        name=driver.name(handle),
        uuid=handle.uuid,
        memory_bytes=driver.memory_bytes(handle),
        num_nvlinks=links.to_gpus.total() + links.num_to_switch,
        num_to_switch=links.num_to_switch,
        nvlink_bytes_per_s=links.bytes_per_s,
        pcie_generation=driver.ask("nvmlDeviceGetMaxPcieLinkGeneration", handle.pointer),
        pcie_width=driver.ask("nvmlDeviceGetMaxPcieLinkWidth", handle.pointer),
    )


def _pair(
    driver: Nvml, handles: Sequence[Handle], links: Sequence[_Links], first: int, second: int
) -> JoinedPair:
    ends = (handles[first].pointer, handles[second].pointer)
    level = driver.ask("nvmlDeviceGetTopologyCommonAncestor", *ends)
    status = driver.ask("nvmlDeviceGetP2PStatus", *ends, P2P_READ)
    return JoinedPair(
        first=first,
        second=second,
        num_nvlinks=links[first].count_to(links[second]),
        path=LEVELS.get(level),
        reads_directly=None if status is None else status == P2P_OK,
    )


def _speed(driver: Nvml, pointer: Any, links: Sequence[int]) -> float | None:
    """Bytes per second and direction of all ``links``; None where the device does not say."""
    if not links:
        return None
    each = [_field(driver, pointer, (FIELD_LINK_SPEED, link)) for link in links]
    common = _field(driver, pointer, FIELD_COMMON_SPEED)
    found = [speed or common for speed in each]
    known = [speed for speed in found if speed]
    return sum(known) * 1e6 if len(known) == len(links) else None


def _field(driver: Nvml, pointer: Any, field: int | tuple[int, int]) -> int:
    """A field of NVML's in MB/s, or of one link; 0 where it is not told."""
    values = driver.ask("nvmlDeviceGetFieldValues", pointer, [field])
    if not values or values[0].nvmlReturn != 0:
        return 0
    return int(values[0].value.uiVal)


def _bus_id(info: Any) -> str:
    """A device's place, in one form; empty where it is not told."""
    if info is None:
        return ""
    text = info.busId.decode() if isinstance(info.busId, bytes) else str(info.busId)
    return text.upper()
