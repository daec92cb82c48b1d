"""The conformance suite of ``engine.executors.protocol.Executor``.

A test module subclasses :class:`ExecutorContract` and provides ``plan`` and ``make``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from engine.executors.protocol import Executor
from engine.spec.errors import RankError
from engine.spec.modes import BASE, Mode
from engine.spec.plan import ParallelPlan
from engine.spec.steps import SlotStart, StepPlan, StepShape, int32

BLOCK_SIZE = 4
NUM_BLOCKS = 64
VOCAB_SIZE = 515

MakeExecutor = Callable[[], Executor]


def prompt_step(
    step_id: int, *, lens: tuple[int, ...] = (5, 3), mode: Mode = BASE, seed: int = 0
) -> StepPlan:
    """A step that prefills one prompt per length, each in its own blocks, and samples all.

    Blocks have room for one more token.
    """
    count = len(lens)
    width = -(-(max(lens) + 1) // BLOCK_SIZE)
    rng = np.random.default_rng(seed)
    first = (step_id * count * width) % (NUM_BLOCKS - count * width)
    tables = first + np.arange(count * width, dtype=np.int32).reshape(count, width)
    shape = StepShape(
        mode=mode,
        num_seqs=count,
        num_prefill_tokens=sum(lens),
        prefill_context_tokens=sum(lens),
        prefill_attention_pairs=sum(n * (n + 1) // 2 for n in lens),
        num_sampled=count,
    )
    starts = [
        SlotStart(
            slot=row,
            prompt_len=length,
            token_ids=rng.integers(3, VOCAB_SIZE, length).astype(np.int32).tobytes(),
            blocks=tables[row].tobytes(),
        )
        for row, length in enumerate(lens)
    ]
    return StepPlan(
        step_id=step_id,
        shape=shape,
        starts=starts,
        slots=np.arange(count, dtype=np.int32).tobytes(),
        query_lens=np.array(lens, np.int32).tobytes(),
    )


def next_step(step_id: int, *, count: int = 2, mode: Mode = BASE) -> StepPlan:
    """The step after :func:`prompt_step`: each row goes on with the token it sampled."""
    return StepPlan(
        step_id=step_id,
        shape=StepShape(mode=mode, num_seqs=count, num_decode_tokens=count, num_sampled=count),
        slots=np.arange(count, dtype=np.int32).tobytes(),
    )


class ExecutorContract:
    """Subclasses provide the fixtures ``plan`` and ``make`` (a new executor, not started)."""

    @pytest.fixture
    def started(self, make: MakeExecutor) -> Iterator[Executor]:
        executor = make()
        executor.start()
        yield executor
        executor.close()

    def test_start_tells_blocks_bytes_and_depth(
        self, make: MakeExecutor, plan: ParallelPlan
    ) -> None:
        executor = make()
        info = executor.start()
        executor.close()
        assert info.num_kv_blocks == NUM_BLOCKS
        assert len(info.weight_bytes) == len(info.kv_bytes) == plan.replica_size
        assert info.depth == plan.pp

    def test_results_come_in_the_order_of_their_steps(
        self, started: Executor, plan: ParallelPlan
    ) -> None:
        for step_id in range(plan.pp):
            started.submit(prompt_step(step_id))
        for step_id in range(plan.pp, 6):
            assert started.collect().step_id == step_id - plan.pp
            started.submit(prompt_step(step_id))
        assert [started.collect().step_id for _ in range(plan.pp)] == list(range(6 - plan.pp, 6))

    def test_one_step_more_than_the_depth_waits_in_line(
        self, started: Executor, plan: ParallelPlan
    ) -> None:
        for step_id in range(plan.pp + 1):
            started.submit(prompt_step(step_id))
        for step_id in range(plan.pp + 1, 8):
            assert started.collect().step_id == step_id - plan.pp - 1
            started.submit(prompt_step(step_id))
        assert [started.collect().step_id for _ in range(plan.pp + 1)] == list(
            range(7 - plan.pp, 8)
        )

    def test_a_step_queued_behind_the_one_it_continues_gets_its_tokens(
        self, started: Executor, plan: ParallelPlan
    ) -> None:
        modes = [plan.modes[step_id % len(plan.modes)] for step_id in range(4)]
        alone = [self._run(started, prompt_step(0))]
        alone += [self._run(started, next_step(n, mode=modes[n])) for n in (1, 2, 3)]
        ahead = []
        started.submit(prompt_step(0))
        for step_id in (1, 2, 3):
            started.submit(next_step(step_id, mode=modes[step_id]))
            ahead.append(started.collect().token_ids)
        ahead.append(started.collect().token_ids)
        assert ahead == alone

    def test_a_step_is_ready_once_waiting_for_it_takes_no_time(self, started: Executor) -> None:
        started.submit(prompt_step(0))
        started.submit(prompt_step(1))
        assert started.is_ready(30.0)
        assert started.collect(0.0).step_id == 0
        assert started.is_ready(30.0)
        assert started.is_ready(0.0)
        assert started.collect(0.0).step_id == 1

    def test_an_error_is_ready_at_once(self, make: MakeExecutor) -> None:
        executor = make()
        executor.start()
        assert executor.is_ready(30.0), "nothing is in flight: collecting says so"
        executor.submit(prompt_step(0))
        executor.close()
        assert executor.is_ready(30.0), "it is closed: collecting says so"

    def test_ranks_that_are_well_pass_the_check(self, started: Executor) -> None:
        started.check()
        started.submit(prompt_step(0))
        started.collect()
        started.check()

    def test_a_closed_executor_does_not_pass_the_check(self, make: MakeExecutor) -> None:
        executor = make()
        executor.start()
        executor.close()
        with pytest.raises(RankError):
            executor.check()

    def test_every_sampled_row_gets_a_token_of_the_vocabulary(self, started: Executor) -> None:
        started.submit(prompt_step(0, lens=(1, 7, 2)))
        token_ids = int32(started.collect().token_ids)
        assert token_ids.shape == (3,)
        assert ((token_ids >= 0) & (token_ids < VOCAB_SIZE)).all()

    def test_the_same_step_gives_the_same_tokens(self, started: Executor) -> None:
        first, second = (self._run(started, prompt_step(3)) for _ in range(2))
        assert first == second

    def test_each_mode_of_the_plan_runs(self, started: Executor, plan: ParallelPlan) -> None:
        for step_id, mode in enumerate(plan.modes):
            assert len(self._run(started, prompt_step(step_id, mode=mode))) == 8

    def test_the_parts_of_a_step_take_no_negative_time(self, started: Executor) -> None:
        started.submit(prompt_step(0))
        result = started.collect()
        parts = (result.input_s, result.forward_s, result.communication_s, result.sample_s)
        assert min(*parts, result.idle_s, result.input_exposed_s) >= 0

    def test_collecting_with_nothing_in_flight_is_an_error(self, started: Executor) -> None:
        with pytest.raises(RankError):
            started.collect()

    def test_steps_before_the_start_are_refused(self, make: MakeExecutor) -> None:
        executor = make()
        with pytest.raises(RankError):
            executor.submit(prompt_step(0))
        executor.close()

    def test_close_twice_is_fine_and_steps_after_it_are_refused(self, make: MakeExecutor) -> None:
        executor = make()
        executor.start()
        executor.close()
        executor.close()
        with pytest.raises(RankError):
            executor.submit(prompt_step(0))
        with pytest.raises(RankError):
            executor.collect()

    def test_close_with_steps_in_flight_is_fine(
        self, make: MakeExecutor, plan: ParallelPlan
    ) -> None:
        executor = make()
        executor.start()
        for step_id in range(plan.pp + 1):
            executor.submit(prompt_step(step_id))
        executor.close()

    def test_another_executor_runs_after_the_first_was_closed_in_mid_step(
        self, make: MakeExecutor
    ) -> None:
        first = make()
        first.start()
        first.submit(prompt_step(0))
        first.close()
        second = make()
        second.start()
        second.submit(prompt_step(5))
        assert second.collect().step_id == 5
        second.close()

    @staticmethod
    def _run(executor: Executor, step: StepPlan) -> bytes:
        executor.submit(step)
        return executor.collect().token_ids
