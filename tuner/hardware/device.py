"""Device and link descriptions, one small versioned JSON file each beside this module."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.config import DType
from tuner.errors import TunerError

FOLDER = Path(__file__).parent / "devices"
SCHEMA = "device/v1"


@dataclass(frozen=True, kw_only=True)
class LinkSpec:
    """The link between devices of one node: peak per direction, and what is reached of it."""

    name: str
    bytes_per_s_per_direction: float
    efficiency: float
    all_reduce_latency_s: float
    all_to_all_latency_s: float
    send_latency_s: float

    @property
    def bytes_per_s(self) -> float:
        """Achievable bytes per second and direction."""
        return self.bytes_per_s_per_direction * self.efficiency


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """Share of each peak that large operations typically reach; ``usable_memory`` of memory."""

    gemm: float
    attention: float
    memory: float
    usable_memory: float


@dataclass(frozen=True, kw_only=True)
class DeviceSpec:
    """One device: data-sheet peaks, explicit efficiencies, and where both come from."""

    name: str
    title: str
    version: int
    calibration: str
    source: str
    memory_bytes: float
    memory_bytes_per_s: float
    dense_flops_per_s: dict[str, float]
    link: LinkSpec
    efficiency: Efficiency
    kernel_launch_s: float
    kernels_per_layer: int
    host_per_step_s: float
    host_per_seq_s: float

    @classmethod
    def from_json(cls, raw: dict[str, Any], *, where: str) -> DeviceSpec:
        """Read one description.

        Raises:
            TunerError: another schema, or a missing or unknown key, with its name.
        """
        if raw.get("schema") != SCHEMA:
            raise TunerError(f"{where}: schema {raw.get('schema')!r} is not {SCHEMA!r}")
        values = {key: value for key, value in raw.items() if key != "schema"}
        try:
            values["link"] = LinkSpec(**values["link"])
            values["efficiency"] = Efficiency(**values["efficiency"])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise TunerError(f"{where}: {error}") from error

    def flops_per_s(self, dtype: DType) -> float:
        """Achievable dense FLOP/s of large matrix products in ``dtype``."""
        return self.dense_flops_per_s[dtype.value] * self.efficiency.gemm

    @property
    def achievable_bytes_per_s(self) -> float:
        return self.memory_bytes_per_s * self.efficiency.memory

    @property
    def usable_bytes(self) -> float:
        """Memory that weights and KV may fill; the rest is activations and the runtime."""
        return self.memory_bytes * self.efficiency.usable_memory


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """``count`` equal devices in one node."""

    device: DeviceSpec
    count: int

    def __str__(self) -> str:
        return f"{self.count}x{self.device.name}"


def list_devices() -> list[str]:
    """Names of the devices that have a description."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_device(name: str) -> DeviceSpec:
    """The description of ``name``.

    Raises:
        TunerError: no such device, with the known ones.
    """
    if name not in list_devices():
        raise TunerError(f"device {name!r} is not known; known are {', '.join(list_devices())}")
    path = FOLDER / f"{name}.json"
    return DeviceSpec.from_json(json.loads(path.read_text()), where=path.name)


def parse_hardware(text: str) -> Hardware:
    """Read ``8xh200`` (or ``h200`` for one device).

    Raises:
        TunerError: another form, a count of 0, or an unknown device.
    """
    match = re.fullmatch(r"(?:(\d+)x)?([a-z][a-z0-9_-]*)", text.strip().lower())
    if match is None or match[1] == "0":
        raise TunerError(
            f"hardware {text!r}: write COUNTxDEVICE, as in '8xh200'; "
            f"known devices are {', '.join(list_devices())}"
        )
    return Hardware(device=load_device(match[2]), count=int(match[1] or 1))
