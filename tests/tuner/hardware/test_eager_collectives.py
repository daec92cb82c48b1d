from __future__ import annotations

from engine.spec.modes import BASE
from engine.spec.plan import ParallelPlan
from engine.spec.steps import StepShape
from tuner.hardware import Launch, Precision, paced_timer, parse_hardware
from tuner.work.models import load_model


def step_seconds(plan: ParallelPlan, launch: Launch, tokens: int) -> float:
    timer = paced_timer(
        parse_hardware("8xh200"), load_model("llama-3.1-70b"), plan, Precision.FP8, launch=launch
    )
    shape = StepShape(
        mode=BASE,
        num_seqs=tokens,
        num_decode_tokens=tokens,
        decode_context_tokens=tokens * 1024,
        num_sampled=tokens,
    )
    return sum(timer.stage_seconds(shape))


def added_seconds(plan: ParallelPlan, tokens: int) -> float:
    """What issuing from Python adds to each of a step's two collectives per layer."""
    eager, replayed = (
        step_seconds(plan, launch, tokens) for launch in (Launch.EAGER, Launch.GRAPH)
    )
    return (eager - replayed) / (2 * 80)


def test_an_exchange_through_python_takes_turns_with_the_layers() -> None:
    assert 10e-6 < added_seconds(ParallelPlan(sp=8), 8) < 30e-6


def test_issuing_small_all_reduces_is_hidden_behind_layers_that_take_longer() -> None:
    assert added_seconds(ParallelPlan(tp=8), 1) < 2e-6


def test_one_rank_has_no_collective_to_issue() -> None:
    alone = ParallelPlan()
    assert step_seconds(alone, Launch.EAGER, 8) == step_seconds(alone, Launch.GRAPH, 8)
