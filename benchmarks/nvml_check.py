"""What a real driver tells, and what asking costs: ``python -m benchmarks.nvml_check``, 20 s.

It needs a CUDA device, torch and pynvml; ``tests/engine/nvml/test_real_device.py`` judges the same.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from engine.nvml.library import Handle, Nvml
from engine.nvml.monitor import DeviceMonitor, energy_counters
from engine.nvml.summary import DeviceSummary
from engine.nvml.topology import read_topology
from engine.replica.devices import list_cuda_devices
from engine.spec.config import EngineConfig
from engine.spec.errors import DriverAbsentError
from tuner.hardware.detected import describe

CALLS = 50
SECONDS = 5.0
QUERIES: tuple[Callable[[Nvml, Handle], object], ...] = (
    Nvml.power_w,
    Nvml.energy_j,
    Nvml.busy_ratios,
    Nvml.sm_clock_hz,
    Nvml.memory_clock_hz,
    Nvml.temperature_c,
    Nvml.memory_used_bytes,
    Nvml.clock_limits,
)


def main() -> int:
    """Print a report; 1 where there is no driver."""
    try:
        with Nvml() as driver:
            _print_queries(driver)
            joined = read_topology(driver)
    except DriverAbsentError as error:
        print(f"no driver: {error}")
        return 1
    print(f"\n--hardware {describe(joined)}\n")
    for device in joined.devices:
        print(json.dumps(device.to_json()))
    for pair in joined.pairs:
        print(json.dumps(pair.to_json()))
    if torch.cuda.is_available():
        _print_watched()
    return 0


def _print_queries(driver: Nvml) -> None:
    print("| device | query | answer | us a call |\n|---|---|---|---|")
    for handle in driver.list_handles():
        for query in QUERIES:
            start_s = time.perf_counter()
            answers = [query(driver, handle) for _ in range(CALLS)]
            each_us = (time.perf_counter() - start_s) / CALLS * 1e6
            print(f"| {handle.uuid} | {query.__name__} | {answers[-1]} | {each_us:.0f} |")


def _print_watched() -> None:
    """Device 0 idle, and multiplying; what the monitor itself takes of a core meanwhile."""
    config = EngineConfig(model_dir=Path("unused"), device="cuda")
    torch.cuda.init()
    with DeviceMonitor(lambda: list_cuda_devices(config, torch.cuda.device_count())) as monitor:
        for name, work in (("idle", time.sleep), ("matmul", _multiply)):
            before = energy_counters(monitor.read_now())
            cpu_s = time.process_time()
            work(SECONDS)
            cpu_s = time.process_time() - cpu_s
            used = before.until(energy_counters(monitor.read_now()))
            told = "unknown" if used is None else f"{used.joules / used.seconds:.1f} W"
            print(f"\n{name}: {told} of all devices, {cpu_s / SECONDS:.2%} of a core")
        print(json.dumps(DeviceSummary.of(monitor.history(0)).to_json()))


def _multiply(seconds: float) -> None:
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        for _ in range(20):
            torch.mm(a, a)
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
