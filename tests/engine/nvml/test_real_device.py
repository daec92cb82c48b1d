"""A real driver: plausible figures, energy that grows with work, the right devices.

It needs torch with CUDA and pynvml (nvidia-ml-py), no more.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from engine.nvml.library import Nvml
from engine.nvml.monitor import DeviceMonitor, energy_counters
from engine.nvml.summary import DeviceSummary
from engine.nvml.topology import read_topology
from engine.replica.devices import list_cuda_devices
from engine.spec.config import EngineConfig
from engine.spec.energy import EnergyUse
from tests.rooms import ROOT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
CONFIG = EngineConfig(model_dir=Path("unused"), device="cuda")
# Plausible of one board.
LEAST_W, MOST_W = 20.0, 1500.0
FIRST_UUID = """
from pathlib import Path
import torch
from engine.nvml.monitor import DeviceMonitor
from engine.replica.devices import list_cuda_devices
from engine.spec.config import EngineConfig
config = EngineConfig(model_dir=Path("unused"), device="cuda")
with DeviceMonitor(lambda: list_cuda_devices(config, 1)) as monitor:
    print(*(reading.uuid for reading in monitor.read_now()))
"""


def watch() -> DeviceMonitor:
    torch.cuda.init()  # before the monitor's thread waits for it
    return DeviceMonitor(
        lambda: list_cuda_devices(CONFIG, torch.cuda.device_count()), interval_s=0.05
    )


def multiply(seconds: float) -> None:
    """Keep the first device busy."""
    a = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        for _ in range(20):
            torch.mm(a, a)
        torch.cuda.synchronize()


def test_figures_are_plausible_and_every_device_is_the_one_that_cuda_means() -> None:
    with watch() as monitor:
        readings = monitor.read_now()
    assert [r.index for r in readings] == list(range(torch.cuda.device_count()))
    for reading in readings:
        uuid = str(torch.cuda.get_device_properties(reading.index).uuid)
        assert reading.uuid in (f"GPU-{uuid}", f"MIG-{uuid}")
        assert reading.memory_used_bytes is not None
        assert reading.power_w is None or LEAST_W <= reading.power_w <= MOST_W
        assert reading.temperature_c is None or 10 <= reading.temperature_c <= 110
        for clock_hz in (reading.sm_clock_hz, reading.memory_clock_hz):
            assert clock_hz is None or 1e8 <= clock_hz <= 2e10
        for ratio in (reading.busy_ratio, reading.memory_busy_ratio):
            assert ratio is None or 0 <= ratio <= 1


def test_energy_grows_while_there_is_work_and_faster_than_without() -> None:
    with watch() as monitor:
        if monitor.read_now()[0].energy_j is None:
            pytest.skip("this device tells no energy of its own")
        multiply(0.5)
        used = []
        for work in (multiply, time.sleep):
            before = energy_counters(monitor.read_now())
            work(2.0)
            energy = before.until(energy_counters(monitor.read_now()))
            assert isinstance(energy, EnergyUse)
            used.append(energy.joules / energy.seconds)
        busy = DeviceSummary.of(monitor.history(0))
    busy_w, idle_w = used
    assert LEAST_W <= idle_w < busy_w <= MOST_W * torch.cuda.device_count()
    assert busy.mean_w is not None
    assert LEAST_W <= busy.mean_w <= MOST_W
    assert busy.busy_ratio is None or busy.busy_ratio > 0.1


def test_memory_in_use_grows_by_what_is_allocated() -> None:
    with watch() as monitor:
        torch.zeros(1, device="cuda")
        before = monitor.read_now()[0].memory_used_bytes
        held = torch.zeros(2**30, device="cuda", dtype=torch.uint8)
        torch.cuda.synchronize()
        after = monitor.read_now()[0].memory_used_bytes
        del held
    assert before is not None
    assert after is not None
    assert 0.9 * 2**30 <= after - before <= 1.2 * 2**30


def test_a_device_that_is_the_only_one_shown_is_found_by_its_name() -> None:
    last = torch.cuda.device_count() - 1
    uuid = f"GPU-{torch.cuda.get_device_properties(last).uuid}"
    for shown in (str(last), uuid):
        done = subprocess.run(
            [sys.executable, "-c", FIRST_UUID],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": shown},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.stdout.strip() == uuid, done.stderr


def test_every_device_has_a_name_memory_and_a_way_to_the_host() -> None:
    with Nvml() as driver:
        joined = read_topology(driver)
    assert len(joined.devices) >= torch.cuda.device_count()
    for device in joined.devices:
        assert device.name
        assert device.memory_bytes > 2**30
        assert device.pcie_bytes_per_s is None or 1e9 < device.pcie_bytes_per_s < 1e12
        assert device.nvlink_bytes_per_s is None or 1e10 < device.nvlink_bytes_per_s < 2e12
    assert len(joined.pairs) == len(joined.devices) * (len(joined.devices) - 1) // 2
