"""Simulated steps take their timer's time, overlap over stages, and pace real clocks."""

from __future__ import annotations

import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.clock import VirtualClock, WallClock
from engine.executors.protocol import Clock
from engine.executors.simulated import FIRST_TOKEN_ID, SimulatedExecutor, token_ids
from engine.plan import ParallelPlan
from engine.steps import StepPlan, StepShape


class TokenTimer:
    """Each stage takes a millisecond per token, the last one twice that."""

    def __init__(self, pp: int) -> None:
        self._pp = pp

    def stage_seconds(self, shape: StepShape) -> tuple[float, ...]:
        seconds = shape.num_tokens * 1e-3
        return (*[seconds] * (self._pp - 1), 2 * seconds)

    def host_seconds(self, shape: StepShape) -> float:
        return 0.0


def started(pp: int, clock: Clock) -> SimulatedExecutor:
    executor = SimulatedExecutor(
        plan=ParallelPlan(pp=pp),
        model_vocab_size=500,
        num_kv_blocks=8,
        timer=TokenTimer(pp),
        clock=clock,
    )
    executor.start()
    return executor


def step(step_id: int, num_tokens: int) -> StepPlan:
    shape = StepShape(num_decode_tokens=num_tokens, num_seqs=num_tokens, num_sampled=num_tokens)
    return StepPlan(step_id=step_id, shape=shape)


def test_a_step_moves_a_virtual_clock_by_its_time() -> None:
    clock = VirtualClock()
    executor = started(1, clock)
    executor.submit(step(0, 5))
    assert clock.now() == 0.0
    executor.collect()
    assert clock.now() == 0.010


def test_stages_overlap_and_the_slowest_sets_the_pace() -> None:
    clock = VirtualClock()
    executor = started(2, clock)
    executor.submit(step(0, 10))
    executor.submit(step(1, 10))
    executor.collect()
    assert np.isclose(clock.now(), 0.030)  # 10 ms in stage 0, 20 ms in stage 1
    executor.submit(step(2, 10))
    executor.collect()
    assert np.isclose(clock.now(), 0.050)  # stage 1 took step 1 at once
    executor.collect()
    assert np.isclose(clock.now(), 0.070)


def test_a_wall_clock_is_waited_for() -> None:
    executor = started(1, WallClock())
    began_s = time.monotonic()
    executor.submit(step(0, 10))
    executor.collect()
    assert time.monotonic() - began_s >= 0.020


@given(step_id=st.integers(0, 2**40), rows=st.integers(0, 50), vocab=st.integers(4, 200_000))
def test_token_ids_follow_from_the_step_and_avoid_the_special_ones(
    step_id: int, rows: int, vocab: int
) -> None:
    ids = token_ids(step_id, rows, vocab)
    assert ids.shape == (rows,)
    assert ((ids >= FIRST_TOKEN_ID) & (ids < vocab)).all()
    assert (ids == token_ids(step_id, rows, vocab)).all()
