"""Where steps' time goes on described hardware, and the oracle that takes the fastest mode."""

from __future__ import annotations

import pytest

from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from tuner.described.parse import describe_node
from tuner.described.steps import NodeSteps, step_s, steps_json
from tuner.step_model.timer import FastestTimer
from tuner.work.shapes import decode_shape, prompt_shape
from tuner.workload.parse import parse_workload

NODE = describe_node(model="llama-3.1-8b", hardware="4xh100", dtype="bf16", backend="gearshift")
PLAN = ParallelPlan(sp=4, shift=True)
CAPS = Caps(max_num_seqs=128, max_num_batched_tokens=2048)


def test_pieces_add_up_to_the_step_and_degrees_to_those_that_fit() -> None:
    load = parse_workload("poisson:rate=4,input=1000,output=100,requests=10", seed=0)
    found = steps_json(NodeSteps(NODE), Settings(plan=PLAN, caps=CAPS), load)
    assert list(found["modes"]["ms"]) == list(PLAN.modes)
    for piece in found["pieces"]:
        is_decode = piece["step"].startswith("decode")
        shape = (decode_shape(64, 1050, piece["mode"]) if is_decode
                 else prompt_shape(1000, piece["mode"]))  # fmt: skip
        # The timer itself goes by a line between sizes.
        whole_ms = 1e3 * step_s(NODE.timer(PLAN), shape)
        assert piece["step_ms"] == pytest.approx(whole_ms, rel=5e-3)
    degrees = found["scaling"]["degrees"]
    assert [degree["tp"] for degree in degrees] == [1, 2, 4]
    assert degrees[0]["shares"]["communication"] == 0 < degrees[2]["shares"]["communication"]
    assert [trick["name"] for trick in found["scaling"]["tricks"]] == [
        "one step ahead", "parallel sampling"]  # fmt: skip
    assert all(trick["gain"] >= 0 for trick in found["scaling"]["tricks"])


def test_the_oracles_step_is_as_quick_as_in_its_fastest_mode_whatever_it_says() -> None:
    timer = NODE.timer(PLAN)
    oracle = FastestTimer(timer, PLAN.modes)
    for shapes in ([decode_shape(8, 500, m) for m in PLAN.modes],
                   [prompt_shape(2048, m) for m in PLAN.modes]):  # fmt: skip
        best = min(sum(timer.stage_seconds(shape)) for shape in shapes)
        assert {sum(oracle.stage_seconds(shape)) for shape in shapes} == {best}
