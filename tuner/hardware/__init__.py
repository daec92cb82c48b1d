"""Devices and links as data, what fits on them, and a roofline timer for engines paced by them."""

from __future__ import annotations

from tuner.hardware.curve_operators import Launch
from tuner.hardware.device import DeviceSpec, Hardware, LinkSpec, list_devices, parse_hardware
from tuner.hardware.memory import MemoryEstimate, estimate_memory, list_memory, num_device_kv_blocks
from tuner.hardware.precision import Precision
from tuner.hardware.roofline import RooflineTimer, paced_timer

__all__ = [
    "DeviceSpec",
    "Hardware",
    "Launch",
    "LinkSpec",
    "MemoryEstimate",
    "Precision",
    "RooflineTimer",
    "estimate_memory",
    "list_devices",
    "list_memory",
    "num_device_kv_blocks",
    "paced_timer",
    "parse_hardware",
]
