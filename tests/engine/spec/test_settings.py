"""Settings: one value with one JSON form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.policy.document import merge_patch
from engine.spec.admission import Admission
from engine.spec.errors import PolicyError
from engine.spec.modes import AUTO, BASE, SHIFT, TABLE, Mode, ModePin
from engine.spec.plan import ParallelPlan, parse_plan
from engine.spec.rungs import rungs_of, thresholds_of
from engine.spec.settings import Caps, Order, Settings

SETTINGS = Settings(plan=ParallelPlan(sp=4, tp=2, shift=True), threshold_tokens=128)
caps = st.builds(
    Caps,
    max_num_seqs=st.integers(1, 512),
    max_num_batched_tokens=st.integers(1, 9000),
    max_step_ms=st.none() | st.floats(1, 100),
    max_queue=st.none() | st.integers(0, 9),
)

admissions = st.none() | st.builds(
    Admission, rate_rps=st.floats(0.1, 1e6), burst_requests=st.none() | st.integers(2, 99)
)


@st.composite
def all_settings(draw: st.DrawFn, plan: ParallelPlan | None = None) -> Settings:
    plan = plan or draw(
        st.sampled_from([SETTINGS.plan, ParallelPlan(dp=2, pp=3, sp=2, shift=True)])
    )
    rungs = draw(st.none() | st.sets(st.sampled_from(plan.modes), min_size=1))
    allowed = plan.modes if rungs is None else rungs_of(plan, rungs)
    pins = (AUTO, TABLE, *(ModePin(mode) for mode in allowed))
    between = draw(st.sets(st.sampled_from(plan.modes[1:-1]))) if plan.modes[1:-1] else ()
    return Settings(
        plan=plan,
        threshold_tokens=draw(st.integers(0, 10_000)),
        caps=draw(caps),
        pin=draw(st.sampled_from(pins)),
        order=draw(st.sampled_from(Order)),
        rungs=None if rungs is None else allowed,
        rung_thresholds=thresholds_of(plan, {mode: draw(st.integers(0, 9)) for mode in between}),
        admission=draw(admissions),
    )


settings = all_settings()


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


def test_rungs_stand_in_the_document_once_they_are_named() -> None:
    named = Settings.from_json(
        {
            "plan": {"sp": 8},
            "shift": {"enabled": True, "rungs": ["1x8", "4x2"], "rung_thresholds": {"4x2": 900}},
            "mode": "4x2",
        }
    )
    assert named.rungs == named.modes == (Mode("4x2"), SHIFT)
    assert named.to_json()["shift"] == {
        "enabled": True,
        "threshold_tokens": 256,
        "rungs": ["4x2", "shift"],
        "rung_thresholds": {"4x2": 900},
    }
    assert str(named) == "sp=8,shift=256,4x2=900 seqs=64 tokens=2048 mode=4x2 rungs=4x2,shift"
    assert parse_plan(named.plan_text).rung_thresholds == named.rung_thresholds
    assert Settings.from_json({"plan": {"sp": 8}, "mode": "8x1"}).pin == ModePin(BASE)


@given(settings, all_settings(SETTINGS.plan))
def test_the_hot_part_of_others_leaves_plan_and_order(one: Settings, other: Settings) -> None:
    one = Settings(plan=SETTINGS.plan, order=one.order)
    moved = one.with_hot(other)
    assert (moved.plan, moved.order) == (one.plan, one.order)
    assert moved.is_hot_as(other)
    assert (moved == one) is one.is_hot_as(other)


def test_a_pinned_shift_mode_needs_a_plan_with_shift() -> None:
    with pytest.raises(PolicyError, match="needs a plan with Shift on") as caught:
        Settings(plan=ParallelPlan(tp=2), pin=ModePin(SHIFT))
    assert caught.value.needs == "reshape"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"mode": "3x3"}, "'3x3' is no rung of sp=4, tp=2; its rungs are 4x2, 2x4, 1x8"),
        ({"shift": {"rungs": ["4x4"]}}, "'4x4' is no rung of sp=4, tp=2"),
        ({"shift": {"rungs": []}}, r"rungs \[\]: must be one mode or more"),
        ({"shift": {"rungs": ["base", "4x2"]}}, "each once"),
        ({"shift": {"rungs": "base"}}, "/shift/rungs: 'base' is not a list"),
        ({"shift": {"rungs": ["fast"]}}, "/shift/rungs: 'fast'; known: base, shift and rungs"),
        ({"shift": {"rungs": ["base"]}, "mode": "2x4"}, "'2x4' is not among the rungs base"),
        ({"shift": {"rung_thresholds": {"base": 9}}}, "only rungs between base and shift"),
        ({"shift": {"rung_thresholds": {"2x4": -1}}}, r"2x4=-1: must be in 0\.\."),
        ({"shift": {"rung_thresholds": {"2x4": "x"}}}, "/shift/rung_thresholds/2x4: 'x'"),
        ({"shift": {"enabled": False}, "mode": "2x4"}, "needs a plan with Shift on"),
    ],
)
def test_a_mode_that_the_plan_does_not_have_is_refused_with_those_it_has(
    document: dict[str, Any], message: str
) -> None:
    patch = {"plan": {"sp": 4, "tp": 2}, "shift": {"enabled": True}}
    with pytest.raises(PolicyError, match=message):
        Settings.from_json(merge_patch(patch, document))


def test_a_threshold_is_doubted_only_while_it_decides() -> None:
    low = replace(SETTINGS, threshold_tokens=8, caps=Caps(max_num_seqs=64))
    assert "below max_num_seqs 64" in low.warnings[0]
    assert replace(low, pin=TABLE).warnings == []
    with pytest.raises(PolicyError, match="threshold_tokens=-1"):
        replace(SETTINGS, threshold_tokens=-1)


def test_a_cap_of_tokens_that_leaves_prompts_none_is_doubted() -> None:
    narrow = Settings(caps=Caps(max_num_seqs=64, max_num_batched_tokens=32))
    (told,) = narrow.warnings
    assert told.startswith("max_num_batched_tokens 32 is too small for max_num_seqs 64: 32 seq")
    # With two stages, half of the sequences are in a step.
    assert replace(narrow, plan=ParallelPlan(pp=2)).warnings == []


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"caps": {"max_step_ms": 10**400}}, "max_step_ms=1000.*at most 1e"),
        ({"shift": {"threshold_tokens": 2**64}}, "threshold_tokens=18446744073709551616"),
        ({"shift": {"rung_thresholds": {"2x4": 2**31}}}, "2x4=2147483648"),
    ],
)
def test_a_number_beyond_what_parts_can_count_with_is_refused(
    document: dict[str, Any], message: str
) -> None:
    """One of them ended every step loop, another the line to the front process."""
    patch = {"plan": {"sp": 4, "tp": 2}, "shift": {"enabled": True}}
    with pytest.raises(PolicyError, match=message):
        Settings.from_json(merge_patch(patch, document))


def test_a_pin_or_an_order_that_is_not_known_is_refused() -> None:
    with pytest.raises(PolicyError, match="mode: 'tabel'; known: table, auto, base, shift and"):
        Settings(pin=ModePin("tabel"))
    with pytest.raises(PolicyError, match="'lifo': must be an Order; known: fcfs"):
        Settings(order="lifo")


@pytest.mark.parametrize("sp", [10**6, 10**9, 10**18])
def test_a_mode_of_a_plan_beyond_any_machine_is_refused_without_a_search(sp: int) -> None:
    document = {"plan": {"sp": sp}, "shift": {"enabled": True}, "mode": "4x2"}
    with pytest.raises(PolicyError, match="'4x2' is no rung of"):
        Settings.from_json(document)
