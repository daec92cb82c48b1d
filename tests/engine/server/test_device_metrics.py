"""What an engine's metrics tell of its devices, and that they tell nothing without a driver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.engine import Engine
from engine.text.tokenizer import Tokenizer
from tests.engine.nvml.engines import gpus, monitor_of
from tests.engine.nvml.fake_nvml import NOT_SUPPORTED, FakeNvml
from tests.engine.server.conftest import (
    Server,
    serving,
    simulated_engine,
)
from tests.engine.server.front.remote_pair import remote_pair
from tests.waiting import wait_until

PREFIX = "gearshift_device_"
Scraped = dict[tuple[str, ...], float]


def watched_engine(model_dir: Path, library: FakeNvml) -> Engine:
    """Four ranks that only take time, on the first four devices of ``library``."""
    return simulated_engine(model_dir, step_s=0.001, monitor=monitor_of(library))


def scrape(server: Server) -> Scraped:
    """Values of the devices' series by name, device, UUID and what else there is."""
    text = server.http.get("/metrics").text
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    found = {}
    for sample in samples:
        if sample.name.startswith(PREFIX):
            labels = [sample.labels.get(name) for name in ("device", "uuid", "reason")]
            key = (sample.name.removeprefix(PREFIX), *(label for label in labels if label))
            found[key] = sample.value
    return found


@pytest.fixture(scope="module")
def library() -> FakeNvml:
    """Six devices, of which one tells neither power nor what limits its clocks."""
    found = gpus(6)
    found[2].events = pynvml.nvmlClocksEventReasonSwPowerCap
    found[5].refuses = {
        "nvmlDeviceGetPowerUsage": NOT_SUPPORTED,
        "nvmlDeviceGetCurrentClocksEventReasons": NOT_SUPPORTED,
    }
    return FakeNvml(*found)


@pytest.fixture(scope="module")
def server(tiny_dir: Path, library: FakeNvml) -> Iterator[Server]:
    with watched_engine(tiny_dir, library) as engine, serving(engine, tiny_dir) as running:
        wait_until(lambda: bool(engine.stats().devices))
        yield running


def test_every_series_has_the_device_as_cuda_counts_it_and_its_uuid(server: Server) -> None:
    scraped = scrape(server)
    ranks = [("0", "GPU-5"), ("1", "GPU-4"), ("2", "GPU-3"), ("3", "GPU-2")]
    for name, value in {
        "busy_ratio": 0.97,
        "memory_busy_ratio": 0.4,
        "sm_clock_hertz": 1.98e9,
        "memory_clock_hertz": 2.619e9,
        "temperature_celsius": 61,
        "memory_used_bytes": 70 * 2**30,
        "energy_joules_total": 0.0,
    }.items():
        of_name = {key[1:]: v for key, v in scraped.items() if key[0] == name}
        assert of_name == dict.fromkeys(ranks, value), "devices of no rank are left out"


def test_what_one_device_does_not_tell_is_missing_and_not_zero(server: Server) -> None:
    scraped = scrape(server)
    powers = {key[1]: value for key, value in scraped.items() if key[0] == "power_watts"}
    assert powers == pytest.approx({"1": 300.0, "2": 300.0, "3": 300.0})
    limits = {key[1:]: value for key, value in scraped.items() if key[0] == "clock_limited"}
    assert len(limits) == 3 * 6
    assert [key for key, value in limits.items() if value] == [("3", "GPU-2", "power_cap")]


def test_energy_grows_as_the_devices_counter_does(server: Server, library: FakeNvml) -> None:
    library.gpus[5].energy_mj += 7_500
    wait_until(lambda: scrape(server)["energy_joules_total", "0", "GPU-5"] == pytest.approx(7.5))


def test_a_front_process_is_told_of_devices_too(tiny_dir: Path) -> None:
    tokenizer = Tokenizer.from_dir(tiny_dir)
    library = FakeNvml(*gpus(4))
    with (
        watched_engine(tiny_dir, library) as engine,
        remote_pair(engine, tokenizer) as pair,
    ):
        wait_until(lambda: bool(engine.stats().devices))
        devices = pair.remote.stats().devices
    assert [device.uuid for device in devices] == ["GPU-3", "GPU-2", "GPU-1", "GPU-0"]
    assert devices[0].clock_limits == ()
    assert devices[0].power_w == pytest.approx(300.0)


def test_without_a_driver_there_is_no_series(tiny_dir: Path) -> None:
    library = FakeNvml(init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    with watched_engine(tiny_dir, library) as engine, serving(engine, tiny_dir) as server:
        assert "gearshift_steps_total" in server.http.get("/metrics").text
        assert scrape(server) == {}
        assert engine.read_energy().joules == {}


def test_energy_is_told_of_all_ranks_devices_or_not_at_all(tiny_dir: Path) -> None:
    with watched_engine(tiny_dir, FakeNvml(*gpus(3))) as engine:
        assert engine.read_energy().joules == {}, "the fourth rank's device is not known"
    with watched_engine(tiny_dir, FakeNvml(*gpus(4))) as engine:
        assert len(engine.read_energy().joules) == 4
