"""Device and link descriptions, one small versioned JSON file each beside this module."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuner.errors import TunerError
from tuner.hardware.curves import Curves
from tuner.hardware.precision import Precision

FOLDER = Path(__file__).parent / "devices"
SCHEMA = "device/v2"
# What a roofline from data sheets is commonly off by, as a log ratio.
UNCALIBRATED_INTERVAL = 0.25
CURVES_SUFFIX = ".curves.json"
# How the members of a collective are joined.
IN_NODE = "node"
ACROSS_NODES = "nodes"


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
    """One device: data-sheet peaks, explicit efficiencies, and where both come from.

    ``curves`` are fitted to measurements where there are any; else the efficiencies stand in.
    ``interval`` is the 90 % half width of log(true / predicted) of a step: the held-out error of
    whole layers (``benchmarks/reports``), widened by what was not measured.
    """

    name: str
    title: str
    version: int
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
    num_sms: int
    interval: float
    curves: Curves | None = None

    @classmethod
    def from_json(cls, raw: dict[str, Any], *, where: str) -> DeviceSpec:
        """Read one description.

        Raises:
            TunerError: another schema, or a missing or unknown key, with its name.
        """
        if raw.get("schema") != SCHEMA:
            raise TunerError(f"{where}: schema {raw.get('schema')!r} is not {SCHEMA!r}")
        values = {key: value for key, value in raw.items() if key not in ("schema", "curves")}
        try:
            values["link"] = LinkSpec(**values["link"])
            values["efficiency"] = Efficiency(**values["efficiency"])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise TunerError(f"{where}: {error}") from error

    def flops_per_s(self, precision: Precision) -> float:
        """Achievable dense FLOP/s of large matrix products in ``precision``."""
        return self.dense_flops_per_s[precision.peak] * self.efficiency.gemm

    def curves_for(self, precision: Precision) -> Curves | None:
        """The fitted curves, where they cover products in ``precision``."""
        if self.curves is None or precision.curve not in self.curves.gemm:
            return None
        return self.curves

    def interval_for(self, precision: Precision) -> float:
        """The 90 % half width of log(true / predicted) of a step in ``precision``."""
        if self.curves_for(precision) is not None:
            return self.interval
        return max(self.interval, UNCALIBRATED_INTERVAL)

    @property
    def calibration(self) -> str:
        """How far the numbers can be trusted, in words."""
        if self.curves is None:
            return "uncalibrated"
        formats = ", ".join(p.value for p in Precision if self.curves_for(p))
        return f"calibrated for {formats}"

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
    files = FOLDER.glob("*.json")
    return sorted(file.stem for file in files if not file.name.endswith(CURVES_SUFFIX))


def load_device(name: str) -> DeviceSpec:
    """The description of ``name``, with its curves where they were fitted.

    Raises:
        TunerError: no such device, with the known ones.
    """
    spec = load_data_sheet(name)
    fitted = FOLDER / f"{name}{CURVES_SUFFIX}"
    if not fitted.exists():
        return spec
    curves = Curves.from_json(json.loads(fitted.read_text()), where=fitted.name)
    return replace(spec, curves=curves)


def load_data_sheet(name: str) -> DeviceSpec:
    """The description of ``name`` without fitted curves.

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
