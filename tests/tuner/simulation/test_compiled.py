"""The compiled run against Python's: the same decisions, and the same times to the last bit."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from engine.kernels.native_build import NO_COMPILER_VARIABLE
from engine.spec.modes import TABLE
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Order, Settings, StepOrder
from engine.spec.steps import StepShape
from tests.tuner.worlds import SMALL, LinearTimer, closed_loop, in_python, open_loop
from tuner.described.node import Node
from tuner.described.parse import describe_node
from tuner.simulation.compiled import find_compiled_run
from tuner.simulation.native_library import find_simulation_library
from tuner.simulation.simulate import (
    OnProgress,
    Ranks,
    SimulatedEngine,
    SimulationResult,
    no_progress,
    ranks_of_one,
)
from tuner.spec.front_end import FrontEnd
from tuner.spec.look_ahead import LookAhead
from tuner.spec.prompt_wait import NO_PROMPT_WAIT, PromptWait
from tuner.step_model.timer import ScaledTimer, StepScale
from tuner.workload.workload import Arrival, Workload

needs_library = pytest.mark.skipif(find_simulation_library() is None, reason="no C++ compiler here")
PLANS = (
    ParallelPlan(),
    ParallelPlan(dp=3),
    ParallelPlan(pp=3),
    ParallelPlan(dp=2, pp=2),
    ParallelPlan(sp=4, shift=True),
)


def assert_same(engine: SimulatedEngine, given: Settings, workload: Workload) -> None:
    """Both versions tell the same: tokens, steps, counts, and what was told meanwhile."""
    compiled = find_compiled_run(engine, given, workload)
    assert compiled is not None, "compiled code runs such a run"
    told: list[tuple[float, int, int]] = []
    expected: list[tuple[float, int, int]] = []
    result = compiled.result(lambda *call: told.append(call))
    by_python = in_python(engine, given, workload, on_progress=lambda *call: expected.append(call))
    assert _exact(result) == _exact(by_python)
    assert told == expected


def _exact(result: SimulationResult) -> SimulationResult:
    """With the ranks' seconds rounded: newer Pythons add numbers up in more than doubles."""
    counts, segments = result.counts, result.segments
    seconds = {mode: round(value, 6) for mode, value in counts.step_seconds.items()}
    return replace(
        result,
        counts=replace(counts, step_seconds=seconds),
        segments=tuple(structs.replace(each, busy_s=round(each.busy_s, 9)) for each in segments),
    )


@needs_library
@settings(max_examples=60, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(st.floats(0.0, 1.5), st.integers(1, 400), st.integers(1, 90)),
        min_size=1,
        max_size=70,
    ),
    concurrency=st.integers(0, 8),
    plan=st.sampled_from(PLANS),
    look_ahead=st.sampled_from(LookAhead),
    step_order=st.sampled_from(StepOrder),
    max_num_seqs=st.integers(1, 20),
    max_num_batched_tokens=st.integers(20, 600),
    num_kv_blocks=st.integers(20, 120),
    token_s=st.sampled_from([0.0, 1e-5, 2e-3]),
    wait=st.sampled_from([NO_PROMPT_WAIT, PromptWait(steps=3, share=0.5)]),
)
def test_any_run_is_the_same_step_by_step(
    arrivals: list[tuple[float, int, int]],
    concurrency: int,
    plan: ParallelPlan,
    look_ahead: LookAhead,
    step_order: StepOrder,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    num_kv_blocks: int,
    token_s: float,
    wait: PromptWait,
) -> None:
    # Few blocks, so that requests are preempted, and some are too long for the engine.
    base = (
        closed_loop(requests=1, concurrency=concurrency)
        if concurrency
        else open_loop(requests=1, gap_s=0.0)
    )
    workload = replace(
        base,
        arrivals=tuple(
            Arrival(arrival_s=at_s, input_tokens=inputs, output_tokens=outputs)
            for at_s, inputs, outputs in sorted(arrivals)
        ),
    )
    timer = ScaledTimer(LinearTimer(stages=plan.pp), StepScale(prefill=1.2, decode=0.9))
    engine = SimulatedEngine(
        model=SMALL,
        ranks_of=lambda _: Ranks(timer=timer, num_kv_blocks=num_kv_blocks),
        max_model_len=450,
        front_end=FrontEnd(request_s=0.003, prompt_token_s=1e-6, answer_s=0.001, token_s=token_s),
        prompt_wait=wait,
        look_ahead=look_ahead,
        step_order=step_order,
    )
    caps = Caps(
        max_num_seqs=min(max_num_seqs, max_num_batched_tokens),
        max_num_batched_tokens=max_num_batched_tokens,
    )
    assert_same(engine, Settings(plan=plan, threshold_tokens=64, caps=caps), workload)


@cache
def described(backend: str) -> Node:
    return describe_node(model="llama-3.1-8b", hardware="8xh100", backend=backend)


@needs_library
@pytest.mark.parametrize("backend", ["vllm", "trtllm", "gearshift"])
@pytest.mark.parametrize(
    "plan",
    [ParallelPlan(tp=2), ParallelPlan(dp=2, pp=2), ParallelPlan(sp=2, tp=2, shift=True)],
    ids=str,
)
@pytest.mark.parametrize("scale", [1.0, StepScale(prefill=1.3, decode=0.8)])
def test_step_times_of_tables_are_those_that_the_timer_tells(
    backend: str, plan: ParallelPlan, scale: float | StepScale, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, load = described(backend), open_loop(requests=120, gap_s=0.01, input_tokens=900)
    given = Settings(plan=plan, caps=Caps(max_num_seqs=48, max_num_batched_tokens=1024))
    compiled = node.simulate(given, load, step_scale=scale)
    monkeypatch.setenv(NO_COMPILER_VARIABLE, "1")
    assert _exact(node.simulate(given, load, step_scale=scale)) == _exact(compiled)


class RaisingTimer(LinearTimer):
    def stage_seconds(self, shape: StepShape) -> tuple[float, ...]:
        if shape.num_decode_tokens > 3:
            raise ZeroDivisionError("no such step")
        return super().stage_seconds(shape)


@needs_library
def test_what_a_timer_or_a_watcher_raises_ends_the_run_and_is_raised() -> None:
    load = open_loop(requests=60, gap_s=0.0)
    given = Settings(caps=Caps(max_num_seqs=8))

    def stop(*_: object) -> None:
        raise KeyError("enough")

    cases: tuple[tuple[LinearTimer, OnProgress, type[Exception]], ...] = (
        (RaisingTimer(), no_progress, ZeroDivisionError),
        (LinearTimer(), stop, KeyError),
    )
    for timer, watch, raised in cases:
        ranks = Ranks(timer=timer, num_kv_blocks=200)
        engine = SimulatedEngine(model=SMALL, ranks_of=ranks_of_one(ParallelPlan(), ranks))
        compiled = find_compiled_run(engine, given, load)
        assert compiled is not None
        with pytest.raises(raised):
            compiled.result(watch)


RANKS = Ranks(timer=LinearTimer(), num_kv_blocks=200)
PLAIN = SimulatedEngine(model=SMALL, ranks_of=lambda _: RANKS)


@pytest.mark.parametrize(
    ("engine", "given"),
    [
        (PLAIN, Settings(order=Order.PRIORITY)),
        (PLAIN, Settings(caps=Caps(max_queue=3))),
        (PLAIN, Settings(caps=Caps(max_step_ms=20.0))),
        (PLAIN, Settings(plan=ParallelPlan(sp=2, shift=True), pin=TABLE)),
        (replace(PLAIN, keeps_prefixes=True), Settings()),
    ],
)
def test_what_compiled_code_does_not_know_runs_in_python(
    engine: SimulatedEngine, given: Settings
) -> None:
    assert find_compiled_run(engine, given, open_loop(requests=3, gap_s=0.1)) is None
