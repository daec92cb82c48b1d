"""The simulator and the live engine schedule the same steps when steps take the same time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.models.create import create_model
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Order
from engine.spec.steps import StepShape
from tests.tuner.simulation.virtual_engine import Served, World, serve, simulated
from tuner.workload.workload import Arrival

PLANS = (
    ParallelPlan(),
    ParallelPlan(pp=2),
    ParallelPlan(pp=3),
    ParallelPlan(sp=2, shift=True),
    ParallelPlan(pp=2, sp=2, shift=True),
)


@dataclass(frozen=True)
class ArbitraryTimer:
    """Step times that follow from the step's size and mode in no orderly way."""

    seed: int
    stages: int
    host_s: float = 0.0

    def stage_seconds(self, shape: StepShape) -> tuple[float, ...]:
        size = (self.seed, str(shape.mode), shape.num_tokens, shape.num_seqs)
        rng = Random(repr(size))
        return tuple(rng.uniform(0.002, 0.050) for _ in range(self.stages))

    def host_seconds(self, shape: StepShape) -> float:
        return self.host_s


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    create_model(folder, preset="tiny", seed=0)
    return folder


arrivals = st.lists(
    st.tuples(st.floats(0.0, 0.2), st.integers(1, 60), st.integers(1, 20)), min_size=1, max_size=16
)


@st.composite
def worlds(draw: st.DrawFn, *, overlap: bool, has_step_limit: bool = False) -> World:
    plan = draw(st.sampled_from(PLANS))
    at_s, found = 0.0, []
    for gap_s, given_tokens, wanted in draw(arrivals):
        at_s += gap_s
        found.append(Arrival(arrival_s=at_s, input_tokens=given_tokens, output_tokens=wanted))
    return World(
        plan=plan,
        caps=Caps(
            max_num_seqs=draw(st.integers(1, 6)),
            max_num_batched_tokens=draw(st.integers(2, 64)),
            max_step_ms=draw(st.floats(5.0, 60.0)) if has_step_limit else None,
            max_queue=draw(st.none() | st.integers(1, 4)),
        ),
        timer=ArbitraryTimer(
            seed=draw(st.integers(0, 1000)),
            stages=plan.pp,
            # In a pipeline the simulator takes in results that come while the host is at work.
            host_s=draw(st.sampled_from((0.0, 0.0013))) if plan.pp == 1 else 0.0,
        ),
        arrivals=tuple(found),
        threshold_tokens=draw(st.integers(1, 32)),
        order=draw(st.sampled_from((Order.FCFS, Order.SHORTEST_PROMPT))),
        overlap=overlap,
        num_kv_blocks=draw(st.integers(20, 60)),
        block_size=4,
        max_model_len=80,
    )


def assert_same(live: Served, simulated: Served) -> None:
    for nth, (a, b) in enumerate(zip(live.decisions, simulated.decisions, strict=False)):
        assert a == b, f"step {nth}: the engine's {a}, the simulator's {b}"
    assert len(live.decisions) == len(simulated.decisions)
    assert live.refused == simulated.refused
    for name, token_s in live.token_s.items():
        assert token_s == pytest.approx(simulated.token_s[name], abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(world=worlds(overlap=False))
def test_an_engine_without_overlap_and_the_simulator_schedule_the_same_steps(
    world: World, model_dir: Path
) -> None:
    assert_same(serve(world, model_dir), simulated(world, model_dir))


def test_a_queue_that_was_refused_during_quiet_steps_is_full_for_the_next_request(
    model_dir: Path,
) -> None:
    lengths = ((0.0, 54, 7), (0.125, 21, 1), (0.25, 57, 1))
    world = World(
        plan=ParallelPlan(),
        caps=Caps(max_num_seqs=2, max_num_batched_tokens=23, max_queue=1),
        timer=ArbitraryTimer(seed=0, stages=1),
        arrivals=tuple(
            Arrival(arrival_s=at_s, input_tokens=given_tokens, output_tokens=wanted)
            for at_s, given_tokens, wanted in lengths
        ),
        threshold_tokens=1,
        order=Order.FCFS,
        overlap=False,
        num_kv_blocks=20,
        block_size=4,
        max_model_len=80,
    )
    live = serve(world, model_dir)
    assert live.refused == {"2"}
    assert_same(live, simulated(world, model_dir))


@settings(max_examples=50, deadline=None)
@given(world=worlds(overlap=True))
def test_an_engine_that_queues_steps_ahead_and_the_simulator_schedule_the_same_steps(
    world: World, model_dir: Path
) -> None:
    assert_same(serve(world, model_dir), simulated(world, model_dir))


@settings(max_examples=40, deadline=None)
@given(world=st.booleans().flatmap(lambda on: worlds(overlap=on, has_step_limit=True)))
def test_chunks_sized_by_the_pace_of_steps_are_the_same(world: World, model_dir: Path) -> None:
    assert_same(serve(world, model_dir), simulated(world, model_dir))


@settings(max_examples=40, deadline=None)
@given(world=worlds(overlap=True), concurrency=st.integers(1, 6))
def test_clients_that_wait_for_their_answers_are_served_the_same(
    world: World, concurrency: int, model_dir: Path
) -> None:
    at_once = tuple(replace(arrival, arrival_s=0.0) for arrival in world.arrivals)
    caps = replace(world.caps, max_queue=None)
    closed = replace(world, arrivals=at_once, caps=caps, concurrency=concurrency)
    assert_same(serve(closed, model_dir), simulated(closed, model_dir))
