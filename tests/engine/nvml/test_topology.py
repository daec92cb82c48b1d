"""How devices are joined: through a switch, by links of their own, by PCIe only."""

from __future__ import annotations

import pytest

from engine.nvml.library import Nvml
from engine.nvml.topology import Joined, Path, read_topology
from tests.engine.nvml.engines import gpus
from tests.engine.nvml.fake_nvml import NOT_SUPPORTED, FakeGpu, FakeNvml

ALL_QUERIES = (
    "nvmlDeviceGetNvLinkState",
    "nvmlDeviceGetPciInfo",
    "nvmlDeviceGetMaxPcieLinkGeneration",
    "nvmlDeviceGetMaxPcieLinkWidth",
    "nvmlDeviceGetTopologyCommonAncestor",
    "nvmlDeviceGetP2PStatus",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetName",
)


def read(*found: FakeGpu) -> Joined:
    with Nvml(FakeNvml(*found)) as driver:
        return read_topology(driver)


def test_devices_on_a_switch_reach_each_other_by_all_of_their_links() -> None:
    found = gpus(4)
    for gpu in found:
        gpu.links, gpu.level = [None] * 18, 20
    found[3].links = [None] * 12
    joined = read(*found)
    assert [device.num_nvlinks for device in joined.devices] == [18, 18, 18, 12]
    assert joined.devices[0].num_to_switch == 18
    assert joined.devices[0].nvlink_bytes_per_s == pytest.approx(18 * 26.562e9)
    links = {(pair.first, pair.second): pair.num_nvlinks for pair in joined.pairs}
    assert links == {(0, 1): 18, (0, 2): 18, (0, 3): 12, (1, 2): 18, (1, 3): 12, (2, 3): 12}
    assert {pair.path for pair in joined.pairs} == {Path.PCIE_SWITCHES}
    assert all(pair.reads_directly for pair in joined.pairs)


def test_links_of_their_own_join_only_the_two_at_their_ends() -> None:
    found = gpus(3)
    found[0].links, found[1].links = ["BUS-1"] * 4, ["bus-0"] * 4
    for gpu in found:
        gpu.p2p_status, gpu.has_common_speed = 5, True
    joined = read(*found)
    assert [pair.num_nvlinks for pair in joined.pairs] == [4, 0, 0]
    assert joined.devices[0].nvlink_bytes_per_s == pytest.approx(4 * 26.562e9)
    assert joined.devices[2].nvlink_bytes_per_s is None
    assert {pair.path for pair in joined.pairs} == {Path.SYSTEM}
    assert not any(pair.reads_directly for pair in joined.pairs)


def test_pcie_is_told_as_generation_width_and_bytes() -> None:
    (device,) = read(*gpus(1)).devices
    assert (device.pcie_generation, device.pcie_width) == (5, 16)
    assert device.pcie_bytes_per_s == pytest.approx(63e9, rel=0.01)


def test_what_devices_refuse_is_absent() -> None:
    found = gpus(2)
    for gpu in found:
        gpu.refuses = dict.fromkeys(ALL_QUERIES, NOT_SUPPORTED)
    joined = read(*found)
    for device in joined.devices:
        assert (device.num_nvlinks, device.nvlink_bytes_per_s) == (0, None)
        assert (device.pcie_generation, device.pcie_bytes_per_s) == (None, None)
    (pair,) = joined.pairs
    assert (pair.num_nvlinks, pair.path, pair.reads_directly) == (0, None, None)


def test_a_lost_device_is_left_out() -> None:
    found = gpus(3)
    found[1].lost = True
    joined = read(*found)
    assert [device.uuid for device in joined.devices] == ["GPU-0", "GPU-2"]
    assert len(joined.pairs) == 1
