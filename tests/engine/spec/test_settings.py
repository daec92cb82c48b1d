"""Settings: one value with one JSON form."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.spec.errors import PolicyError
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, ModePin, Order, Settings

SETTINGS = Settings(plan=ParallelPlan(sp=4, tp=2, shift=True), threshold_tokens=128)
caps = st.builds(
    Caps,
    max_num_seqs=st.integers(1, 512),
    max_num_batched_tokens=st.integers(1, 9000),
    max_step_ms=st.none() | st.floats(1, 100),
    max_queue=st.none() | st.integers(0, 9),
)
settings = st.builds(
    Settings,
    plan=st.sampled_from([SETTINGS.plan, ParallelPlan(dp=2, pp=3, sp=2, shift=True)]),
    threshold_tokens=st.integers(0, 10_000),
    caps=caps,
    pin=st.sampled_from(ModePin),
    order=st.sampled_from(Order),
)


@given(settings)
def test_settings_read_back_what_they_write(value: Settings) -> None:
    assert Settings.from_json(value.to_json()) == value


def test_their_json_is_the_policy_documents() -> None:
    assert SETTINGS.to_json() == {
        "plan": {"dp": 1, "pp": 1, "sp": 4, "tp": 2},
        "shift": {"enabled": True, "threshold_tokens": 128},
        "caps": {
            "max_num_seqs": 64,
            "max_num_batched_tokens": 2048,
            "max_step_ms": None,
            "max_queue": None,
        },
        "scheduler": {"order": "fcfs"},
        "mode": "auto",
    }


def test_what_a_document_leaves_out_takes_its_default() -> None:
    assert Settings.from_json({}) == Settings()
    assert Settings.from_json({"caps": None, "plan": {"tp": 2, "sp": None}}).plan.tp == 2


@given(settings, settings)
def test_the_hot_part_of_others_leaves_plan_and_order(one: Settings, other: Settings) -> None:
    one = replace(one, plan=SETTINGS.plan)
    moved = one.with_hot(other)
    assert (moved.plan, moved.order) == (one.plan, one.order)
    assert moved.is_hot_as(other)
    assert (moved == one) is one.is_hot_as(other)


def test_a_pinned_shift_mode_needs_a_plan_with_shift() -> None:
    with pytest.raises(PolicyError, match="needs a plan with Shift on") as caught:
        Settings(plan=ParallelPlan(tp=2), pin=ModePin.SHIFT)
    assert caught.value.needs == "reshape"


def test_a_threshold_is_doubted_only_while_it_decides() -> None:
    low = replace(SETTINGS, threshold_tokens=8, caps=Caps(max_num_seqs=64))
    assert "below max_num_seqs 64" in (low.threshold_warning or "")
    assert replace(low, pin=ModePin.TABLE).threshold_warning is None
    with pytest.raises(PolicyError, match="threshold_tokens=-1"):
        replace(SETTINGS, threshold_tokens=-1)


def test_a_pin_or_an_order_that_is_only_a_word_is_refused() -> None:
    with pytest.raises(PolicyError, match="'table': must be a ModePin; known: table, auto"):
        Settings(pin="table")  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match="'lifo': must be an Order; known: fcfs"):
        Settings(order="lifo")  # type: ignore[arg-type]
