"""Simulated steps take their timer's time, overlap over stages, and pace real clocks."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.executors.clock import VirtualClock, WallClock
from engine.executors.protocol import Clock
from engine.executors.simulated import FIRST_TOKEN_ID, SimulatedExecutor, token_ids
from engine.spec.errors import RankError
from engine.spec.plan import ParallelPlan
from engine.spec.steps import StepPlan, StepShape, int32
from tests.contracts.executor import NUM_BLOCKS, VOCAB_SIZE, next_step, prompt_step


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


def test_a_queued_step_begins_when_its_stage_is_free_and_a_late_one_tells_the_gap() -> None:
    clock = VirtualClock()
    executor = started(1, clock)
    executor.submit(step(0, 5))
    executor.submit(step(1, 5))
    executor.collect()
    clock.sleep_until(0.015)  # the host is busy while step 1 runs
    assert executor.collect().idle_s == 0
    assert np.isclose(clock.now(), 0.020)
    clock.sleep_until(0.027)
    executor.submit(step(2, 5))
    assert np.isclose(executor.collect().idle_s, 0.007)
    assert np.isclose(clock.now(), 0.037)


def test_the_first_step_waited_for_nobody() -> None:
    clock = VirtualClock()
    executor = started(1, clock)
    clock.sleep_until(5.0)
    executor.submit(step(0, 5))
    assert executor.collect().idle_s == 0


def test_waiting_for_a_step_moves_a_virtual_clock_no_further_than_asked() -> None:
    clock = VirtualClock()
    executor = started(1, clock)
    executor.submit(step(0, 5))
    assert not executor.is_ready(0.004)
    assert clock.now() == 0.004
    assert executor.is_ready(1.0)
    assert clock.now() == 0.010


def test_a_step_that_takes_longer_than_allowed_is_a_rank_error() -> None:
    executor = started(1, VirtualClock())
    executor.submit(step(7, 5))
    with pytest.raises(RankError, match=r"step 7 was not done within 0.004 s"):
        executor.collect(0.004)


def test_ranks_work_on_inputs_reads_real_messages_and_refuses_wrong_ones() -> None:
    executor = SimulatedExecutor(
        plan=ParallelPlan(),
        model_vocab_size=VOCAB_SIZE,
        num_kv_blocks=NUM_BLOCKS,
        timer=TokenTimer(1),
        clock=VirtualClock(),
        applies_inputs=True,
    )
    executor.start()
    assert executor.needs_inputs
    executor.submit(prompt_step(0))
    executor.submit(next_step(1))
    assert [len(int32(executor.collect().token_ids)) for _ in range(2)] == [2, 2]
    with pytest.raises(AssertionError, match="slot 2 was never started"):
        executor.submit(next_step(2, count=3))


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
