"""The device inventory: empty without a driver, never an error."""

from __future__ import annotations

import pytest

from tuner.spec.inventory import list_devices


def has_driver() -> bool:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    pynvml.nvmlShutdown()
    return True


@pytest.mark.skipif(has_driver(), reason="this machine has an NVIDIA driver")
def test_a_machine_without_a_driver_has_no_devices() -> None:
    assert list_devices() == list_devices() == []


@pytest.mark.gpu
def test_devices_are_listed_in_order_with_their_memory() -> None:
    devices = list_devices()
    assert [d.index for d in devices] == list(range(len(devices)))
    assert devices
    assert all(d.memory_bytes > 2**30 and d.name and d.kind == "cuda" for d in devices)
