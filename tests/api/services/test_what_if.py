from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from api.services.what_if import WhatIf, glance, simulate
from api.web.aside import Aside
from api.web.errors import ApiError

ASKED = WhatIf(
    model="llama-3.1-8b",
    hardware="2xh200",
    plan="tp=2",
    rate_rps=2,
    input_tokens=500,
    output_tokens=50,
    sla="p95_ttft_ms<=500",
    seconds=20,
)


@pytest.mark.slow
def test_the_glance_is_near_the_simulation_where_the_load_is_low() -> None:
    seen, simulated = glance(ASKED), asyncio.run(simulate(ASKED, Aside()))
    assert seen.tpot_ms == pytest.approx(simulated["metrics"]["tpot_ms"]["p50"], rel=0.25)
    assert seen.ttft_ms <= simulated["metrics"]["ttft_ms"]["p50"]
    assert simulated["sla"]["is_met"] is True


def test_a_load_beyond_the_devices_has_no_steady_state() -> None:
    seen = glance(replace(ASKED, rate_rps=500, input_tokens=8000))
    assert seen.running is None
    assert seen.tpot_ms is None


def test_a_shift_plan_shows_each_of_its_modes() -> None:
    seen = glance(replace(ASKED, plan="sp=2,shift", backend="gearshift"))
    assert set(seen.decode_ms) == {"base", "shift"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "/etc/passwd"),
        ("model", "llama-9"),
        ("hardware", "2xh2000"),
        ("plan", "tp=two"),
        ("plan", "sp=2,shift"),  # vllm has no such thing
        ("sla", "p95_tftt<=5"),
    ],
)
def test_what_cannot_be_read_is_named(field: str, value: str) -> None:
    with pytest.raises(ApiError) as refused:
        glance(replace(ASKED, **{field: value}))
    assert [error.pointer for error in refused.value.errors] == [f"/{field}"]
