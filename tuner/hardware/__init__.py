"""Devices and links as data, what fits on them, and a roofline timer for engines paced by them."""

from __future__ import annotations

from tuner.hardware.curve_operators import Launch
from tuner.hardware.device import DeviceSpec, Hardware, list_devices, parse_hardware
from tuner.hardware.links import LinkSpec, list_links, load_link
from tuner.hardware.memory import MemoryEstimate, estimate_memory
from tuner.hardware.power import PowerSpec
from tuner.hardware.precision import KvFormat, Precision
from tuner.hardware.roofline import RooflineTimer, paced_timer
from tuner.hardware.sampling import SampleKind, SamplerSpec, sample_s

__all__ = [
    "DeviceSpec",
    "Hardware",
    "KvFormat",
    "Launch",
    "LinkSpec",
    "MemoryEstimate",
    "PowerSpec",
    "Precision",
    "RooflineTimer",
    "SampleKind",
    "SamplerSpec",
    "estimate_memory",
    "list_devices",
    "list_links",
    "load_link",
    "paced_timer",
    "parse_hardware",
    "sample_s",
]
