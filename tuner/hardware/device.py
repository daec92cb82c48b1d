"""Device and link descriptions, one small versioned JSON file each beside this module."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.spec.names import did_you_mean
from tuner.hardware.block_scaled import Chip
from tuner.hardware.curves import IN_NODE, Curves
from tuner.hardware.links import LinkSpec, find_speed, list_links, load_link
from tuner.hardware.power import PowerSpec
from tuner.hardware.precision import Precision
from tuner.spec.catalog import CURVES_SUFFIX, FileShelf, check_name
from tuner.spec.documents import (
    check_above_zero,
    check_not_negative,
    check_shares,
    read_document,
    read_file,
)
from tuner.spec.errors import TunerError

DEVICES = FileShelf(noun="device", sub_folder="devices", folder=Path(__file__).parent / "devices")
SCHEMA = "device/v3"
# What a roofline from data sheets is commonly off by, as a log ratio.
UNCALIBRATED_INTERVAL = 0.25
# More than any cluster has; each device of a plan is a row and a rank somewhere.
MAX_DEVICES = 16_384
LINK_MARK = "@"  # 8xh200@pcie5


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """Share of each peak that large operations typically reach; ``usable_memory`` of memory."""

    gemm: float
    attention: float
    memory: float
    usable_memory: float

    def __post_init__(self) -> None:
        check_shares(self, "gemm", "attention", "memory", "usable_memory")


@dataclass(frozen=True, kw_only=True)
class DeviceSpec:
    """One device: data-sheet peaks, explicit efficiencies, and where both come from.

    ``curves`` are fitted to measurements where there are any; else the efficiencies stand in.
    ``curves_of`` names the device whose they are, where it has the same processors: as variables
    are ratios to a device's peaks, its kernels reach the same shares of them.
    ``interval`` is the 90 % half width of log(true / predicted) of a step: the held-out error of
    whole layers (``benchmarks/reports``), widened by what was not measured. ``link`` joins the
    ``devices_per_node`` devices of a node, ``between_nodes`` each device to those of other nodes
    through one of the node's ``adapters_per_node``.
    ``clock_hz`` is the clock at which the data sheet gives the peaks.
    """

    name: str
    title: str
    version: int
    source: str
    memory_bytes: float
    memory_bytes_per_s: float
    dense_flops_per_s: dict[str, float]
    link: LinkSpec
    between_nodes: LinkSpec
    devices_per_node: int
    adapters_per_node: int
    power: PowerSpec
    efficiency: Efficiency
    kernel_launch_s: float
    kernels_per_layer: int
    host_per_step_s: float
    host_per_seq_s: float
    num_sms: int
    clock_hz: float
    interval: float
    curves: Curves | None = None
    curves_of: str | None = None

    @classmethod
    def from_json(cls, raw: dict[str, Any], *, where: str) -> DeviceSpec:
        """Read one description.

        Raises:
            TunerError: another schema, or a missing, unknown or impossible value, with its name.
        """
        values = dict(raw)
        if "curves" in values:
            raise TunerError(f"{where}: curves: they stand in a file of their own, {CURVES_SUFFIX}")
        for key in ("link", "between_nodes"):
            if isinstance(values.get(key), str):
                try:
                    values[key] = load_link(values[key])
                except TunerError as error:
                    raise TunerError(f"{where}: {key}: {error}") from error
        return read_document(values, cls, schema=SCHEMA, where=where)

    def __post_init__(self) -> None:
        check_above_zero(self, "memory_bytes", "memory_bytes_per_s", "num_sms", "clock_hz")
        check_above_zero(self, "devices_per_node", "adapters_per_node", "kernels_per_layer")
        check_not_negative(self, "kernel_launch_s", "host_per_step_s", "host_per_seq_s", "interval")
        known = [precision.peak for precision in Precision]
        for number_format, flops_per_s in self.dense_flops_per_s.items():
            if number_format not in known:
                raise TunerError(
                    f"dense_flops_per_s: {number_format!r} is not known"
                    f"{did_you_mean(number_format, known)}; known are {', '.join(known)}"
                )
            if not flops_per_s > 0:
                raise TunerError(f"dense_flops_per_s: {number_format}={flops_per_s:g}: must be > 0")
        if Precision.BF16.peak not in self.dense_flops_per_s:
            raise TunerError(f"dense_flops_per_s: {Precision.BF16.peak!r} is missing")

    def flops_per_s(self, precision: Precision) -> float:
        """Achievable dense FLOP/s of large matrix products in ``precision``."""
        peak = self.dense_flops_per_s[precision.peak]
        return peak * self.efficiency.gemm * precision.compute_rate

    def curves_for(self, precision: Precision) -> Curves | None:
        """The fitted curves, where they cover what products in ``precision`` are computed in."""
        if self.curves is None or precision.curve not in self.curves.gemm:
            return None
        return self.curves

    def is_calibrated_for(self, precision: Precision) -> bool:
        """Whether products in ``precision`` were measured on this device; else
        :meth:`estimated_from` says what stands in."""
        return self.curves_for(precision) is not None and self.estimated_from(precision) is None

    def estimated_from(self, precision: Precision) -> str | None:
        """What step times in ``precision`` come from where they were not measured here; None where
        they were, or where data-sheet peaks are all there is."""
        if self.curves_for(precision) is None:
            return None
        return precision.estimated_from or (self.curves_of and f"those of {self.curves_of}")

    def interval_for(self, precision: Precision) -> float:
        """The 90 % half width of log(true / predicted) of a step in ``precision``."""
        if self.is_calibrated_for(precision):
            return self.interval
        return max(self.interval, UNCALIBRATED_INTERVAL)

    @property
    def calibration(self) -> str:
        """How far the numbers can be trusted, in words."""
        if self.curves is None:
            return "uncalibrated"
        if self.curves_of is not None:
            return f"uncalibrated, by the curves of {self.curves_of}"
        formats = ", ".join(p.value for p in Precision if self.is_calibrated_for(p))
        if not self.has_measured_link:
            return f"calibrated for {formats}; link {self.link.name} uncalibrated"
        return f"calibrated for {formats}"

    @property
    def has_measured_link(self) -> bool:
        """Whether collectives inside a node are timed by curves."""
        return self.curves is not None and self.curves.is_measured(IN_NODE)

    def with_link(self, link: LinkSpec) -> DeviceSpec:
        """The same device in a node joined by ``link``: with the collectives that another device
        measured over that link, else by the link's law.
        """
        if link == self.link:
            return self
        changed = replace(self, name=f"{self.name}{LINK_MARK}{link.name}", link=link)
        if self.curves is None:
            return changed
        if link.measured_on is None:
            curves = self.curves.without(IN_NODE)
            interval = max(self.interval, UNCALIBRATED_INTERVAL)
            return replace(changed, curves=curves, interval=interval)
        theirs = load_device(link.measured_on).curves
        if theirs is None:
            raise TunerError(
                f"link {link.name}: measured_on={link.measured_on!r}, which has no curves"
            )
        return replace(changed, curves=self.curves.without(IN_NODE).joined(theirs, IN_NODE))

    def at_link_speed(self, bytes_per_s_per_direction: float) -> DeviceSpec:
        """The same device over its own link with another bandwidth: latencies stay. Over a link
        that is n times slower, a collective takes as long as one with n times the bytes.
        """
        ratio = self.link.bytes_per_s_per_direction / bytes_per_s_per_direction
        link = self.link.at_speed(bytes_per_s_per_direction)
        return replace(
            self,
            name=f"{self.name}{LINK_MARK}{link.name}",
            link=link,
            interval=max(self.interval, UNCALIBRATED_INTERVAL),
            curves=self.curves and self.curves.slowed(IN_NODE, ratio),
        )

    @property
    def achievable_bytes_per_s(self) -> float:
        return self.memory_bytes_per_s * self.efficiency.memory

    @property
    def chip(self) -> Chip:
        """What the laws of single kernels ask."""
        return Chip(
            num_sms=self.num_sms, clock_hz=self.clock_hz, bytes_per_s=self.memory_bytes_per_s
        )

    @property
    def usable_bytes(self) -> float:
        """Memory that weights and KV may fill; the rest is activations and the runtime."""
        return self.memory_bytes * self.efficiency.usable_memory


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """``count`` equal devices, ``devices_per_node`` of them in a node. ``nodes``: how many of them
    there are where somebody said so; else nodes are full."""

    device: DeviceSpec
    count: int
    nodes: int | None = None

    def __str__(self) -> str:
        among = "" if self.nodes is None else f"{self.nodes}x"
        return f"{among}{self.count // (self.nodes or 1)}x{self.device.name}"


def list_devices() -> list[str]:
    """Names of the devices that have a description.

    The machine at hand has none: `gearshift profile` measures it, and its file is a cost model.
    """
    return DEVICES.list_names()


def load_device(name: str) -> DeviceSpec:
    """The description of ``name``, with its curves where they were fitted.

    Raises:
        TunerError: no such device, with the nearest and the known ones, or a file that is wrong.
    """
    spec = load_data_sheet(name)
    if spec.curves_of is not None:
        return replace(spec, curves=load_device(spec.curves_of).curves)
    fitted = DEVICES.get_path(name).with_name(f"{name}{CURVES_SUFFIX}")
    if not fitted.exists():
        return spec
    curves = Curves.from_json(read_file(fitted), where=DEVICES.where(fitted))
    return replace(spec, curves=curves)


def load_data_sheet(name: str) -> DeviceSpec:
    """The description of ``name`` without fitted curves.

    Raises:
        TunerError: no such device, with the nearest and the known ones, or a file that is wrong.
    """
    path = DEVICES.get_path(
        name,
        way_out="; this machine is described by what `gearshift profile` measures, given as "
        "--cost-model",
    )
    device = DeviceSpec.from_json(read_file(path), where=DEVICES.where(path))
    check_name(path, device.name)
    return device


def parse_hardware(text: str) -> Hardware:
    """Read ``8xh200``, or ``h200`` for one device; ``2x4xh200`` are two nodes with four each.

    ``8xh200@pcie5`` is the same device over another link, ``8xh200@64gb/s`` over its own link
    with that bandwidth per device and direction.

    Raises:
        TunerError: another form, a count of 0 or above MAX_DEVICES, an unknown device or link.
    """
    match = re.fullmatch(
        rf"(?:(\d+)x)?(?:(\d+)x)?([a-z][a-z0-9._-]*)(?:{LINK_MARK}([a-z0-9_./-]+))?",
        text.strip().lower(),
    )
    if match is None or any(found and not found.strip("0") for found in match.group(1, 2)):
        raise TunerError(
            f"hardware {text!r}: write COUNTxDEVICE, NODESxCOUNTxDEVICE or COUNTxDEVICE@LINK, as "
            f"in '8xh200', '2x4xh200' or '8xh200@pcie5'; known devices are "
            f"{', '.join(list_devices())}, known links {', '.join(list_links())}"
        )
    # The number of digits first: a thousand of them are no int.
    counts = [(found or "1").lstrip("0") for found in match.group(1, 2)]
    is_short = all(len(digits) <= len(str(MAX_DEVICES)) for digits in counts)
    if not is_short or math.prod(map(int, counts)) > MAX_DEVICES:
        raise TunerError(f"hardware {text[:60]!r}: at most {MAX_DEVICES} devices")
    device = load_device(match[3])
    if match[4]:
        speed = find_speed(match[4])
        device = device.at_link_speed(speed) if speed else device.with_link(load_link(match[4]))
    first, second = map(int, counts)
    if match[2] is None:
        return Hardware(device=device, count=first)
    if second > device.devices_per_node:
        raise TunerError(
            f"hardware {text!r}: a node of {device.name} has {device.devices_per_node} devices"
        )
    return Hardware(
        device=replace(device, devices_per_node=second), count=first * second, nodes=first
    )
