"""Policies: what an engine accepts, and what each change costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engine.policy.document import (
    EnginePolicy,
    KnobClass,
    check_envelope,
    classify,
    merge_patch,
)
from engine.spec.errors import PolicyError
from engine.spec.modes import BASE, SHIFT, Mode, ModePin
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings

SETTINGS = Settings(plan=ParallelPlan(sp=4, tp=2, shift=True), threshold_tokens=128)
POLICY = EnginePolicy(settings=SETTINGS)
ENVELOPE = Caps(max_num_seqs=256, max_num_batched_tokens=8192)


def test_a_merge_patch_changes_only_what_it_names_and_null_removes() -> None:
    patched = POLICY.merged({"shift": {"threshold_tokens": 64}, "caps": {"max_step_ms": 40}})
    assert patched.settings == replace(SETTINGS, threshold_tokens=64, caps=Caps(max_step_ms=40))
    assert patched.merged({"caps": {"max_step_ms": None}}).settings.caps == Caps()
    assert merge_patch({"a": {"b": 1, "c": 2}}, {"a": {"b": None}}) == {"a": {"c": 2}}


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ({"shift": {"treshold": 3}}, "/shift/treshold: unknown knob"),
        ({"colour": 1}, "/colour: unknown knob"),
        ({"caps": {"max_num_seqs": "many"}}, "/caps/max_num_seqs: 'many' is not a int"),
        ({"caps": {"max_num_seqs": 0}}, "max_num_seqs=0: must be at least 1"),
        ({"caps": {"max_num_seqs": True}}, "/caps/max_num_seqs: True"),
        ({"shift": {"enabled": "yes"}}, "/shift/enabled: 'yes' is not true or false"),
        ({"mode": "fast"}, "/mode: 'fast'; known: table, auto, base, shift"),
        ({"mode": ""}, "/mode: ''; known: table, auto, base, shift"),
        ({"mode": False}, "/mode: False; known: table, auto, base, shift"),
        ({"mode": "random:3"}, "/mode: 'random:3'; known: table, auto, base, shift"),
        ({"scheduler": {"order": "lifo"}}, "/scheduler/order: 'lifo'"),
        ({"plan": {"tp": 0}}, "tp=0"),
        ({"plan": 3}, "/plan: 3 is not an object"),
        ({"plan": "tp=1"}, r"'tp=1' is not an object, as in \{\"tp\": 2, \"dp\": 1\}"),
        ({"plan": []}, r"/plan: \[\] is not an object"),
        ({"caps": False}, "/caps: False is not an object"),
        ({"caps": {"max_step_ms": float("inf")}}, "max_step_ms=inf"),
        ({"scheduler": {"order": []}}, r"/scheduler/order: \[\]"),
    ],
)
def test_a_bad_patch_is_refused_with_its_place_and_value(
    patch: dict[str, Any], message: str
) -> None:
    with pytest.raises(PolicyError, match=message):
        POLICY.merged(patch)


def test_every_change_has_its_class() -> None:
    new = replace(
        SETTINGS,
        plan=ParallelPlan(sp=8, shift=True),
        threshold_tokens=1,
        caps=Caps(max_num_seqs=32, max_num_batched_tokens=9000, max_step_ms=5),
        pin=ModePin(BASE),
    )
    assert classify(SETTINGS, new, ENVELOPE) == {
        "plan": KnobClass.RESHAPE,
        "shift.threshold_tokens": KnobClass.HOT,
        "mode": KnobClass.HOT,
        "caps.max_num_seqs": KnobClass.DRAIN,
        "caps.max_num_batched_tokens": KnobClass.RESTART,
        "caps.max_step_ms": KnobClass.HOT,
    }


def test_a_plan_on_the_ladder_of_what_ranks_hold_is_hot() -> None:
    two, four = (replace(SETTINGS, plan=ParallelPlan(sp=sp, tp=8 // sp)) for sp in (2, 4))
    assert classify(SETTINGS, two, ENVELOPE) == {"plan": KnobClass.HOT}
    assert classify(two, four, ENVELOPE) == {"plan": KnobClass.RESHAPE}
    assert classify(two, four, ENVELOPE, held=SETTINGS.plan) == {"plan": KnobClass.HOT}


def test_another_plan_leaves_out_what_was_said_of_modes_that_it_does_not_have() -> None:
    wide = EnginePolicy(
        settings=Settings(
            plan=ParallelPlan(sp=8, shift=True),
            rungs=(BASE, Mode("4x2"), Mode("2x4"), SHIFT),
            rung_thresholds=((Mode("4x2"), 900), (Mode("2x4"), 300)),
            pin=ModePin("4x2"),
        )
    )
    narrow = wide.merged({"plan": {"sp": 4, "tp": 2}}).settings
    assert narrow.rungs == (BASE, "2x4", SHIFT)
    assert narrow.rung_thresholds == (("2x4", 300),)
    assert narrow.pin == "auto"
    one = wide.merged({"plan": {"sp": 1, "tp": 8}, "shift": {"enabled": False}}).settings
    assert (one.rungs, one.rung_thresholds, one.pin) == ((BASE,), (), "auto")
    with pytest.raises(PolicyError, match="'8x1' is no rung of sp=4, tp=2; its rungs are 4x2, 2x4"):
        wide.merged({"plan": {"sp": 4, "tp": 2}, "mode": "8x1"})


def test_caps_above_the_envelope_are_refused_and_say_what_they_need() -> None:
    with pytest.raises(PolicyError, match="300 is above the 256") as caught:
        check_envelope(Caps(max_num_seqs=300), ENVELOPE)
    assert caught.value.needs == KnobClass.RESTART
