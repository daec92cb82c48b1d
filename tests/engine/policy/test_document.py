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
from engine.spec.modes import BASE, ModePin
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
        ({"mode": "random:3"}, "/mode: 'random:3'; known: table, auto, base, shift"),
        ({"scheduler": {"order": "lifo"}}, "/scheduler/order: 'lifo'"),
        ({"plan": {"tp": 0}}, "tp=0"),
        ({"plan": 3}, "/plan: 3 is not an object"),
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
        plan=ParallelPlan(sp=2, tp=4, shift=True),
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


def test_caps_above_the_envelope_are_refused_and_say_what_they_need() -> None:
    with pytest.raises(PolicyError, match="300 is above the 256") as caught:
        check_envelope(Caps(max_num_seqs=300), ENVELOPE)
    assert caught.value.needs == KnobClass.RESTART
