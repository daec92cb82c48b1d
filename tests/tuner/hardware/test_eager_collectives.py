from __future__ import annotations

import pytest

from engine.plan import Mode, ParallelPlan
from engine.steps import StepShape
from tuner.hardware import Launch, Precision, paced_timer, parse_hardware
from tuner.models import load_model


def step_seconds(plan: ParallelPlan, launch: Launch, tokens: int) -> float:
    timer = paced_timer(
        parse_hardware("8xh200"), load_model("llama-3.1-70b"), plan, Precision.FP8, launch=launch
    )
    shape = StepShape(
        mode=Mode.BASE,
        num_seqs=tokens,
        num_decode_tokens=tokens,
        decode_context_tokens=tokens * 1024,
        num_sampled=tokens,
    )
    return sum(timer.stage_seconds(shape))


@pytest.mark.parametrize("plan", [ParallelPlan(tp=8), ParallelPlan(sp=8)], ids=str)
def test_collectives_issued_one_by_one_take_about_as_much_longer_whatever_they_do(
    plan: ParallelPlan,
) -> None:
    added = step_seconds(plan, Launch.EAGER, 8) - step_seconds(plan, Launch.GRAPH, 8)
    per_collective_s = added / (2 * 80)
    assert 10e-6 < per_collective_s < 30e-6


def test_one_rank_has_no_collective_to_issue() -> None:
    alone = ParallelPlan()
    assert step_seconds(alone, Launch.EAGER, 8) == step_seconds(alone, Launch.GRAPH, 8)
