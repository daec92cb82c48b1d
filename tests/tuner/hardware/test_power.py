from __future__ import annotations

import pytest

from tuner.hardware import PowerSpec, list_devices, parse_hardware
from tuner.hardware.power import compute_share
from tuner.spec.errors import TunerError


@pytest.mark.parametrize("name", list_devices())
def test_busier_devices_draw_more_and_the_estimate_names_its_source(name: str) -> None:
    power = parse_hardware(name).device.power
    assert 0 < power.idle_w <= power.memory_bound_w <= power.compute_bound_w
    assert power.source.startswith("estimate")


def test_a_step_lies_between_decode_and_prefill_by_its_tokens() -> None:
    assert compute_share(0, 64) == compute_share(0, 0) == 0.0
    assert compute_share(64, 64) == 0.5
    assert compute_share(4096, 0) == 1.0


def test_less_power_for_more_work_is_refused() -> None:
    with pytest.raises(TunerError, match="memory_bound_w=50"):
        PowerSpec(idle_w=60, memory_bound_w=50, compute_bound_w=100, source="x")
