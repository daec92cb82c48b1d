"""Devices watched through NVML as it behaves: what they refuse, and that they may go."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise

import pynvml
import pytest

from engine.nvml.library import Nvml
from engine.nvml.monitor import DeviceMonitor, energy_counters
from engine.nvml.reading import ClockLimit, DeviceId
from engine.spec.errors import DriverAbsentError
from tests.engine.nvml.fake_nvml import (
    NO_PERMISSION,
    NOT_SUPPORTED,
    FakeGpu,
    FakeNvml,
)

FIRST = FakeGpu(uuid="GPU-aaaa", bus_id="00000000:18:00.0")


def watch(library: FakeNvml, *devices: DeviceId, num_kept: int = 480) -> DeviceMonitor:
    """A monitor whose rounds come when they are asked for."""
    return DeviceMonitor(
        lambda: devices, interval_s=60.0, num_kept=num_kept, open_driver=lambda: Nvml(library)
    )


def test_a_reading_is_in_si_units() -> None:
    gpu = FakeGpu(uuid="GPU-aaaa", bus_id="x", events=0x04 | 0x40 | 0x01)
    with watch(FakeNvml(gpu), DeviceId(index=0, uuid="aaaa")) as monitor:
        (reading,) = monitor.read_now()
    assert (reading.index, reading.uuid) == (0, "GPU-aaaa")
    assert reading.power_w == pytest.approx(300.0)
    assert (reading.busy_ratio, reading.memory_busy_ratio) == (0.97, 0.4)
    assert (reading.sm_clock_hz, reading.memory_clock_hz) == (1.98e9, 2.619e9)
    assert reading.temperature_c == 61
    assert reading.memory_used_bytes == 70 * 2**30
    # Being idle (bit 0x01) is no limit.
    assert reading.clock_limits == (ClockLimit.POWER_CAP, ClockLimit.HARDWARE_HEAT)


def test_energy_counts_from_the_start_and_a_reloaded_driver_takes_nothing_back() -> None:
    gpu = FakeGpu(uuid="GPU-aaaa", bus_id="x")
    with watch(FakeNvml(gpu), DeviceId(index=0, uuid="aaaa")) as monitor:
        seen = [monitor.read_now()[0].energy_j]
        for counter_mj in (5_250_000, 1_000, 11_000):
            gpu.energy_mj = counter_mj
            seen.append(monitor.read_now()[0].energy_j)
    assert seen == pytest.approx([0.0, 250.0, 250.0, 260.0])


def test_without_a_counter_energy_is_the_integral_of_power() -> None:
    gpu = FakeGpu(
        uuid="GPU-aaaa", bus_id="x", refuses={"nvmlDeviceGetTotalEnergyConsumption": NOT_SUPPORTED}
    )
    with watch(FakeNvml(gpu), DeviceId(index=0, uuid="aaaa")) as monitor:
        monitor.read_now()
        gpu.power_mw = 500_000
        monitor.read_now()
        history = monitor.history(0)
    for before, after in pairwise(history):
        assert before.power_w is not None
        assert after.power_w is not None
        grown = (after.energy_j or 0.0) - (before.energy_j or 0.0)
        mean_w = (before.power_w + after.power_w) / 2
        assert grown == pytest.approx((after.at_s - before.at_s) * mean_w, abs=1e-9)
    assert history[-1].energy_j is not None
    assert history[-1].energy_j > 0


@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION, pynvml.NVML_ERROR_UNKNOWN])
@pytest.mark.parametrize(
    ("function", "fields"),
    [
        ("nvmlDeviceGetPowerUsage", ["power_w"]),
        ("nvmlDeviceGetUtilizationRates", ["busy_ratio", "memory_busy_ratio"]),
        ("nvmlDeviceGetClockInfo", ["sm_clock_hz", "memory_clock_hz"]),
        ("nvmlDeviceGetTemperature", ["temperature_c"]),
        ("nvmlDeviceGetMemoryInfo", ["memory_used_bytes"]),
        ("nvmlDeviceGetCurrentClocksEventReasons", ["clock_limits"]),
    ],
)
def test_what_a_device_refuses_is_absent_and_the_rest_is_there(
    function: str, fields: list[str], code: int
) -> None:
    gpu = FakeGpu(uuid="GPU-aaaa", bus_id="x", refuses={function: code})
    with watch(FakeNvml(gpu), DeviceId(index=0, uuid="aaaa")) as monitor:
        (reading,) = monitor.read_now()
    told = vars(reading)
    assert [name for name, value in told.items() if value is None] == fields


def test_with_neither_counter_nor_power_there_is_no_energy() -> None:
    refuses = {
        "nvmlDeviceGetTotalEnergyConsumption": NOT_SUPPORTED,
        "nvmlDeviceGetPowerUsage": NOT_SUPPORTED,
    }
    gpu = FakeGpu(uuid="GPU-bbbb", bus_id="y", refuses=refuses)
    devices = (DeviceId(index=0, uuid="aaaa"), DeviceId(index=1, uuid="bbbb"))
    with watch(FakeNvml(FIRST, gpu), *devices) as monitor:
        readings = monitor.read_now()
    assert [r.energy_j for r in readings] == [0.0, None]
    assert energy_counters(readings).joules == {}, "a part of the devices would be too little"


def test_a_lost_device_is_left_out_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    gpus = [FakeGpu(uuid=f"GPU-{letter}", bus_id=letter) for letter in "abc"]
    devices = [DeviceId(index=i, uuid=letter) for i, letter in enumerate("abc")]
    with watch(FakeNvml(*gpus), *devices) as monitor:
        assert [r.index for r in monitor.read_now()] == [0, 1, 2]
        gpus[1].lost = True
        for _ in range(3):
            assert [r.index for r in monitor.read_now()] == [0, 2]
    assert caplog.messages == ["device 1 is lost: it is watched no more"]


def test_a_device_lost_before_the_start_is_none() -> None:
    gone = FakeGpu(uuid="GPU-gone", bus_id="y", lost=True)
    devices = (DeviceId(index=0, uuid="gone"), DeviceId(index=1, uuid="aaaa"))
    with watch(FakeNvml(gone, FIRST), *devices) as monitor:
        assert [r.index for r in monitor.read_now()] == [1]


def test_devices_are_those_that_cuda_means_however_they_are_hidden_or_ordered() -> None:
    gpus = [FakeGpu(uuid=f"GPU-{letter}", bus_id=f"bus-{letter}") for letter in "abcd"]
    devices = (
        DeviceId(index=0, uuid="d"),
        DeviceId(index=1, pci_bus_id="bus-b"),
        DeviceId(index=2, uuid="not known to NVML"),
    )
    with watch(FakeNvml(*gpus), *devices) as monitor:
        assert [(r.index, r.uuid) for r in monitor.read_now()] == [(0, "GPU-d"), (1, "GPU-b")]


def test_of_a_slice_only_its_own_is_told() -> None:
    whole = FakeGpu(uuid="GPU-a", bus_id="a", is_mig=True)
    refuses = {"nvmlDeviceGetUtilizationRates": NOT_SUPPORTED, "nvmlDeviceGetMigMode": 2}
    slice_ = FakeGpu(uuid="MIG-s", bus_id="a", is_slice=True, refuses=refuses)
    library = FakeNvml(whole, slice_)
    for device in (DeviceId(index=0, uuid="s"), DeviceId(index=0, uuid="a", pci_bus_id="a")):
        with watch(library, device) as monitor:
            (reading,) = monitor.read_now()
        assert (reading.power_w, reading.energy_j) == (None, None)
        assert (reading.memory_used_bytes is None) == (reading.uuid == "GPU-a")
        assert reading.temperature_c == 61


@pytest.mark.parametrize(
    "code",
    [
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
        NO_PERMISSION,
    ],
)
def test_without_a_driver_there_are_no_readings(code: int) -> None:
    with watch(FakeNvml(init_error=code), DeviceId(index=0, uuid="aaaa")) as monitor:
        assert monitor.read_now() == monitor.latest() == ()
        assert monitor.history(0) == ()
    assert energy_counters(()).joules == {}


def test_memory_is_bounded() -> None:
    with watch(FakeNvml(FIRST), DeviceId(index=0, uuid="aaaa"), num_kept=3) as monitor:
        for _ in range(8):
            newest = monitor.read_now()[0]
        kept = monitor.history(0)
    assert len(kept) == 3
    assert kept[-1] == newest


def test_the_driver_is_asked_on_one_thread_and_shut_when_it_ends() -> None:
    library = FakeNvml(FIRST)
    monitor = watch(library, DeviceId(index=0, uuid="aaaa"))
    assert monitor.read_now() == (), "it has not begun"
    monitor.start()
    monitor.start()
    assert len(monitor.read_now()) == 1
    monitor.stop()
    monitor.stop()
    assert monitor.latest() == ()
    assert library.threads == {"device-monitor"}
    assert library.num_open == 0


def test_a_driver_that_hangs_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WAIT_S", "FIRST_WAIT_S"):
        monkeypatch.setattr(f"engine.nvml.monitor.{name}", 0.05)
    may_go = threading.Event()
    library = FakeNvml(FIRST, on_call=hold(may_go))
    monitor = watch(library, DeviceId(index=0, uuid="aaaa"))
    monitor.start()
    assert monitor.read_now() == ()
    monitor.stop()
    may_go.set()


def hold(event: threading.Event) -> Callable[[str], None]:
    def wait(name: str) -> None:
        if name == "nvmlDeviceGetPowerUsage":
            assert event.wait(30)

    return wait


def test_a_query_of_a_newer_driver_than_the_package_is_absent() -> None:
    with Nvml(FakeNvml(FIRST)) as driver:
        assert driver.ask("nvmlDeviceGetWhatIsNotThereYet", FIRST) is None


def test_the_real_library_without_a_driver_says_why() -> None:
    try:
        Nvml().close()
    except DriverAbsentError as error:
        assert str(error)  # noqa: PT017 - it need not come to that
    with DeviceMonitor(lambda: [DeviceId(index=0, uuid="none such")]) as monitor:
        assert monitor.read_now() == ()
