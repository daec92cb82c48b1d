"""The word for ``--hardware`` that describes the devices at hand, as their driver tells of them."""

from __future__ import annotations

from engine.nvml.topology import Joined, JoinedDevice
from tuner.hardware.device import LINK_MARK, DeviceSpec, load_data_sheet
from tuner.hardware.links import list_links

# What NVML calls the devices that have a description; editions of one board begin alike.
DRIVER_NAMES = {
    "A10G": "a10g",
    "A100-SXM4-40GB": "a100-40gb",
    "A100-SXM4-80GB": "a100",
    "B200": "b200",
    "GB200": "gb200",
    "GeForce RTX 4090": "rtx4090",
    "H20": "h20",
    "H100 80GB HBM3": "h100",
    "H100 PCIe": "h100-pcie",
    "H200": "h200",
    "L4": "l4",
    "L40S": "l40s",
    "RTX 6000 Ada Generation": "rtx6000ada",
    "RTX PRO 6000 Blackwell Server Edition": "rtxpro6000",
    "RTX PRO 6000 Blackwell Workstation Edition": "rtxpro6000",
}
# Links below this share of the description's are another node than the one described.
SAME_LINK = 0.9


def describe(joined: Joined) -> str | None:
    """The joined devices as in ``8xh200``, with the link if it is not the description's.

    None without devices, with devices of several kinds, or of a kind that has no description.
    """
    kinds = {_kind(device) for device in joined.devices}
    if len(kinds) != 1 or (kind := kinds.pop()) is None:
        return None
    word = f"{len(joined.devices)}x{kind}"
    link = _other_link(joined, load_data_sheet(kind)) if len(joined.devices) > 1 else None
    return word if link is None else f"{word}{LINK_MARK}{link}"


def _kind(device: JoinedDevice) -> str | None:
    return DRIVER_NAMES.get(device.name.removeprefix("NVIDIA "))


def _other_link(joined: Joined, spec: DeviceSpec) -> str | None:
    """What stands in for the description's NVLink if it is missing or slower."""
    if not spec.link.name.startswith("nvlink"):
        return None
    if not all(pair.num_nvlinks for pair in joined.pairs):
        generation = min(device.pcie_generation or 0 for device in joined.devices)
        word = f"pcie{generation}"
        return word if word in list_links() else None
    speeds = [device.nvlink_bytes_per_s for device in joined.devices]
    least = min((speed for speed in speeds if speed is not None), default=None)
    if least is None or least >= SAME_LINK * spec.link.bytes_per_s_per_direction:
        return None
    return f"{least / 1e9:.0f}gb/s"
