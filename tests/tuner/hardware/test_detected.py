"""The word for the devices at hand means what they are, link and all."""

from __future__ import annotations

import pytest

from engine.nvml.library import Nvml
from engine.nvml.topology import read_topology
from tests.engine.nvml.engines import gpus
from tests.engine.nvml.fake_nvml import FakeGpu, FakeNvml
from tuner.hardware import list_devices, parse_hardware
from tuner.hardware.detected import DRIVER_NAMES, describe


def word_for(found: list[FakeGpu]) -> str | None:
    with Nvml(FakeNvml(*found)) as driver:
        return describe(read_topology(driver))


def machine(count: int, name: str = "H100 80GB HBM3", *, num_links: int = 18) -> list[FakeGpu]:
    found = gpus(count)
    for gpu in found:
        gpu.name, gpu.links = f"NVIDIA {name}", [None] * num_links
    return found


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (machine(8), "8xh100"),
        (machine(1, num_links=0), "1xh100"),
        (machine(2, "H200"), "2xh200"),
        (machine(2, num_links=0), "2xh100@pcie5"),
        (machine(2, num_links=4), "2xh100@106gb/s"),
        (machine(4, "L40S", num_links=0), "4xl40s"),
        (machine(1, "T4", num_links=0), None),
        (machine(1) + machine(1, "H200"), None),
        ([], None),
    ],
)
def test_the_word_has_the_kind_and_another_link(found: list[FakeGpu], word: str | None) -> None:
    assert word_for(found) == word
    if word is not None:
        assert parse_hardware(word).count == len(found)


def test_every_name_of_a_driver_has_a_description() -> None:
    assert set(DRIVER_NAMES.values()) <= set(list_devices())
