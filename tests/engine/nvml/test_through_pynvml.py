"""The real pynvml over a library of a driver's that is made here: arguments, types and errors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.rooms import ROOT

SOURCE = Path(__file__).with_name("driver.c")
# In a process of its own: the library is found by its name as the process starts.
SCRIPT = """
import json
from dataclasses import asdict
from engine.nvml.library import Nvml
from engine.nvml.monitor import DeviceMonitor
from engine.nvml.reading import DeviceId
from engine.nvml.topology import read_topology

uuid = "00000000-0000-0000-0000-00000000000"
with Nvml() as driver:
    joined = read_topology(driver)
devices = [
    DeviceId(index=0, uuid=uuid + "b"),
    DeviceId(index=1, uuid="unknown", pci_bus_id="00000000:18:00.0"),
]
with DeviceMonitor(lambda: devices, interval_s=60.0) as monitor:
    rounds = [[asdict(r) for r in monitor.read_now()] for _ in range(2)]
print(json.dumps({
    "devices": [d.to_json() for d in joined.devices],
    "pairs": [p.to_json() for p in joined.pairs],
    "rounds": rounds,
}))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no C compiler here")
    folder = tmp_path_factory.mktemp("driver")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, SOURCE], check=True, timeout=60)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "LD_LIBRARY_PATH": str(folder)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_readings_come_in_si_units_and_a_device_is_found_by_either_name(
    told: dict[str, Any],
) -> None:
    (there,) = told["rounds"][1]  # the other was lost after its first reading
    assert (there["index"], there["uuid"][-1]) == (1, "a")
    assert there["power_w"] == pytest.approx(412.345)
    assert (there["busy_ratio"], there["memory_busy_ratio"]) == (0.87, 0.21)
    assert (there["sm_clock_hz"], there["memory_clock_hz"]) == (1.98e9, 3.201e9)
    assert there["temperature_c"] == 44
    assert there["memory_used_bytes"] == 2**30
    assert there["clock_limits"] == ["power_cap"]


def test_energy_grows_between_rounds(told: dict[str, Any]) -> None:
    first, second = (found[-1]["energy_j"] for found in told["rounds"])
    assert second - first == pytest.approx(0.5)


def test_links_are_those_between_the_two(told: dict[str, Any]) -> None:
    for device in told["devices"]:
        assert device["name"] == "NVIDIA H200"
        assert device["memory_bytes"] == 3 * 2**30
        assert (device["num_nvlinks"], device["num_to_switch"]) == (3, 0)
        assert device["nvlink_bytes_per_s"] == pytest.approx(3 * 26.562e9)
        assert device["pcie_bytes_per_s"] == pytest.approx(63e9, rel=0.01)
    assert told["pairs"] == [
        {"first": 0, "second": 1, "num_nvlinks": 3, "path": "numa_node", "reads_directly": True}
    ]
