"""Policies: what an engine accepts, and what each change costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.policy.document import (
    EnginePolicy,
    KnobClass,
    check_envelope,
    classify,
    merge_patch,
    policy_from_json,
)
from engine.spec.errors import PolicyError
from engine.spec.plan import Mode, ParallelPlan
from engine.spec.settings import Caps, Order

POLICY = EnginePolicy(plan=ParallelPlan(sp=4, tp=2, shift=True), threshold_tokens=128)
ENVELOPE = Caps(max_num_seqs=256, max_num_batched_tokens=8192)


@given(
    threshold=st.integers(0, 10_000),
    seqs=st.integers(1, 512),
    step_ms=st.none() | st.floats(1, 100),
    order=st.sampled_from(Order),
    mode=st.sampled_from(["table", "auto", "base", "shift", "random:3"]),
)
def test_a_policy_reads_back_what_it_writes(
    threshold: int, seqs: int, step_ms: float | None, order: Order, mode: str
) -> None:
    policy = EnginePolicy(
        plan=POLICY.plan,
        threshold_tokens=threshold,
        caps=Caps(max_num_seqs=seqs, max_step_ms=step_ms),
        order=order,
        mode=mode,
    )
    assert policy_from_json(policy.to_json()) == policy


def test_a_merge_patch_changes_only_what_it_names_and_null_removes() -> None:
    patched = POLICY.merged({"shift": {"threshold_tokens": 64}, "caps": {"max_step_ms": 40}})
    assert patched == replace(POLICY, threshold_tokens=64, caps=Caps(max_step_ms=40))
    assert patched.merged({"caps": {"max_step_ms": None}}).caps == Caps()
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
        ({"mode": "fast"}, "mode 'fast' is not known"),
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
        POLICY,
        plan=ParallelPlan(sp=2, tp=4, shift=True),
        threshold_tokens=1,
        caps=Caps(max_num_seqs=32, max_num_batched_tokens=9000, max_step_ms=5),
        mode="base",
    )
    assert classify(POLICY, new, ENVELOPE) == {
        "plan": KnobClass.RESHAPE,
        "shift.threshold_tokens": KnobClass.HOT,
        "mode": KnobClass.HOT,
        "caps.max_num_seqs": KnobClass.DRAIN,
        "caps.max_num_batched_tokens": KnobClass.RESTART,
        "caps.max_step_ms": KnobClass.HOT,
    }


def test_caps_above_the_envelope_are_refused_and_say_what_they_need() -> None:
    with pytest.raises(PolicyError, match="300 is above the 256") as caught:
        check_envelope(replace(POLICY, caps=Caps(max_num_seqs=300)), ENVELOPE)
    assert caught.value.needs == KnobClass.RESTART


def test_a_pinned_shift_mode_needs_a_plan_with_shift() -> None:
    with pytest.raises(PolicyError, match="needs a plan with Shift on") as caught:
        _ = EnginePolicy(plan=ParallelPlan(tp=2), mode="shift").chooser
    assert caught.value.needs == KnobClass.RESHAPE


def test_the_mode_rule_and_its_pins() -> None:
    auto = POLICY.chooser
    assert [auto.choose(n, 0) for n in (1, 128, 129)] == [Mode.SHIFT, Mode.SHIFT, Mode.BASE]
    assert replace(POLICY, mode="base").chooser.choose(1, 0) is Mode.BASE
    assert replace(POLICY, mode="shift").chooser.choose(9999, 0) is Mode.SHIFT
    flips = [replace(POLICY, mode="random:5").chooser.choose(1, step) for step in range(400)]
    assert 120 < flips.count(Mode.BASE) < 280
    assert flips != [replace(POLICY, mode="random:6").chooser.choose(1, s) for s in range(400)]


def test_a_threshold_is_doubted_only_while_it_decides() -> None:
    policy = replace(POLICY, threshold_tokens=8, caps=Caps(max_num_seqs=64))
    assert "below max_num_seqs 64" in (policy.threshold_warning or "")
    assert replace(policy, mode="table").threshold_warning is None
