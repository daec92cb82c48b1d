"""Thresholds that step times advise, for every rung that wins somewhere."""

from __future__ import annotations

from itertools import pairwise

import pytest

from engine.modes.chooser import ModeChooser
from engine.spec.modes import SHIFT
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from tuner.described.node import Node
from tuner.described.parse import describe_node
from tuner.search.design import advised_ladders, advised_rule, ruled_settings
from tuner.work.shapes import STEP_TOKENS, step_shape

PLAN = ParallelPlan(sp=8, shift=True)
CAPS = Caps(max_num_seqs=256, max_num_batched_tokens=8192)


@pytest.fixture(scope="module")
def node() -> Node:
    return describe_node(
        model="qwen2.5-32b", hardware="8xh200@pcie5", dtype="bf16", backend="gearshift"
    )


def test_steps_by_advised_thresholds_are_nearly_as_fast_as_on_the_best_rung(node: Node) -> None:
    timer = node.timer(PLAN)
    ladder, ends = ruled_settings(PLAN, timer, CAPS, has_rungs=True)[1:]
    assert ladder.rung_thresholds
    assert not ends.rung_thresholds
    spent = dict.fromkeys(("ladder", "ends", "best"), 0.0)
    for num_tokens in STEP_TOKENS:
        step_s = {
            mode: sum(timer.stage_seconds(step_shape(num_tokens, CAPS.max_num_seqs, mode)))
            for mode in PLAN.modes
        }
        spent["ladder"] += step_s[ModeChooser.of(ladder).choose(num_tokens, 0)]
        spent["ends"] += step_s[ModeChooser.of(ends).choose(num_tokens, 0)]
        spent["best"] += min(step_s.values())
    assert spent["best"] <= spent["ladder"] <= 1.01 * spent["best"]
    assert spent["ladder"] < 0.99 * spent["ends"]


def test_thresholds_rise_towards_base_and_a_rung_that_never_wins_has_none(node: Node) -> None:
    rule = advised_rule(node.timer(PLAN), PLAN.modes, CAPS.max_num_seqs)
    rising = [rule.threshold_tokens, *(most for _, most in reversed(rule.rung_thresholds))]
    assert all(low < high for low, high in pairwise(rising))
    assert advised_ladders({PLAN: node.timer(PLAN)}, 256) == {PLAN: rule.rung_thresholds}
    two = ParallelPlan(sp=2, shift=True)
    assert advised_ladders({two: node.timer(two)}, 256) == {}


def test_a_twin_keeps_full_decode_steps_in_shift(node: Node) -> None:
    twin, *_, ends = ruled_settings(PLAN, node.timer(PLAN), CAPS, has_rungs=True)
    assert ModeChooser.of(twin).choose(CAPS.max_num_seqs, 0) == SHIFT
    assert ruled_settings(PLAN, node.timer(PLAN), CAPS, has_rungs=False)[-1] == ends
    plain = ParallelPlan(tp=8)
    assert ruled_settings(plain, node.timer(plain), CAPS, has_rungs=True) == [
        Settings(plan=plain, caps=CAPS)
    ]
