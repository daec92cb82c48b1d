"""Prometheus series of the ranks' devices: what their driver does not tell has no series."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from engine.nvml.reading import ClockLimit, DeviceReading

DEVICE_LABELS = ("device", "uuid")
ENERGY = "gearshift_device_energy_joules_total"


@dataclass(frozen=True, kw_only=True)
class _Series:
    """One value of each device."""

    name: str
    text: str
    value: Callable[[DeviceReading], float | None]


GAUGES = (
    _Series(
        name="gearshift_device_power_watts",
        text="Power of the board",
        value=lambda device: device.power_w,
    ),
    _Series(
        name="gearshift_device_busy_ratio",
        text="Share of the last moment in which a kernel ran, 0..1",
        value=lambda device: device.busy_ratio,
    ),
    _Series(
        name="gearshift_device_memory_busy_ratio",
        text="Share of the last moment in which memory was read or written, 0..1",
        value=lambda device: device.memory_busy_ratio,
    ),
    _Series(
        name="gearshift_device_sm_clock_hertz",
        text="Clock of the SMs",
        value=lambda device: device.sm_clock_hz,
    ),
    _Series(
        name="gearshift_device_memory_clock_hertz",
        text="Clock of the memory",
        value=lambda device: device.memory_clock_hz,
    ),
    _Series(
        name="gearshift_device_temperature_celsius",
        text="Temperature of the GPU",
        value=lambda device: device.temperature_c,
    ),
    _Series(
        name="gearshift_device_memory_used_bytes",
        text="Memory in use, by whomever",
        value=lambda device: device.memory_used_bytes,
    ),
)
COUNTERS = (
    _Series(
        name=ENERGY.removesuffix("_total"),
        text="Energy since the engine's start",
        value=lambda device: device.energy_j,
    ),
)


def device_families(
    devices: Sequence[DeviceReading], labels: Mapping[str, str]
) -> Iterator[Metric]:
    """Every series that some device has a value of; ``labels`` stand before the device's own."""
    for kind, rows in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
        for series in rows:
            family = kind(series.name, series.text, labels=(*labels, *DEVICE_LABELS))
            for device in devices:
                if (value := series.value(device)) is not None:
                    family.add_metric((*labels.values(), *_own(device)), value)
            if family.samples:
                yield family
    limits = _clock_limits(devices, labels)
    if limits.samples:
        yield limits


def _clock_limits(devices: Sequence[DeviceReading], labels: Mapping[str, str]) -> Metric:
    family = GaugeMetricFamily(
        "gearshift_device_clock_limited",
        "1 while the reason holds the device's clocks down",
        labels=(*labels, *DEVICE_LABELS, "reason"),
    )
    for device in devices:
        for limit in ClockLimit if device.clock_limits is not None else ():
            is_on = limit in (device.clock_limits or ())
            family.add_metric((*labels.values(), *_own(device), limit.value), float(is_on))
    return family


def _own(device: DeviceReading) -> tuple[str, str]:
    return str(device.index), device.uuid
