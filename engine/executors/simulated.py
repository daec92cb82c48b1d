"""Runs nothing: steps take the time a timer says, on a virtual or a real clock; no torch."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from engine.errors import RankError
from engine.executors.protocol import Clock, ExecutorInfo, StepTimer
from engine.plan import ParallelPlan
from engine.steps import Int32Array, StepPlan, StepResult

FIRST_TOKEN_ID = 3  # below lie the usual begin, end and padding ids


@dataclass(frozen=True, kw_only=True)
class _Running:
    step: StepPlan
    finish_s: float
    busy_s: float


class SimulatedExecutor:
    """Paces steps by ``timer``'s stage times; see ``engine.executors.protocol.Executor``.

    A stage begins a step when its input is there and its previous step is done, so up to ``pp``
    steps overlap. Host time between steps passes by itself on a real clock and is the caller's
    on a virtual one. Token ids follow from step and row alone and are at least 3, so that no
    usual end-of-text id appears.
    """

    needs_inputs = False

    def __init__(
        self,
        *,
        plan: ParallelPlan,
        model_vocab_size: int,
        num_kv_blocks: int,
        timer: StepTimer,
        clock: Clock,
    ) -> None:
        self._plan = plan
        self._vocab_size = model_vocab_size
        self._num_kv_blocks = num_kv_blocks
        self._timer = timer
        self._clock = clock
        self._stage_free_s = [0.0] * plan.pp
        self._running: deque[_Running] = deque()
        self._is_open = False

    def start(self) -> ExecutorInfo:
        self._is_open = True
        self._stage_free_s = [self._clock.now()] * self._plan.pp
        nothing = (0,) * self._plan.replica_size
        return ExecutorInfo(
            num_kv_blocks=self._num_kv_blocks,
            weight_bytes=nothing,
            kv_bytes=nothing,
            depth=self._plan.pp,
        )

    def submit(self, step: StepPlan) -> None:
        self._check_open()
        assert len(self._running) < self._plan.pp, "more steps in flight than stages"
        stages = self._timer.stage_seconds(step.shape)
        ready_s = self._clock.now()
        for stage, seconds in enumerate(stages):
            ready_s = max(ready_s, self._stage_free_s[stage]) + seconds
            self._stage_free_s[stage] = ready_s
        self._running.append(_Running(step=step, finish_s=ready_s, busy_s=sum(stages)))

    def collect(self) -> StepResult:
        self._check_open()
        if not self._running:
            raise RankError("no step is in flight; submit one before collecting")
        done = self._running.popleft()
        self._clock.sleep_until(done.finish_s)
        ids = token_ids(done.step.step_id, done.step.shape.num_sampled, self._vocab_size)
        return StepResult(step_id=done.step.step_id, token_ids=ids.tobytes(), forward_s=done.busy_s)

    def close(self) -> None:
        self._is_open = False
        self._running.clear()

    def _check_open(self) -> None:
        if not self._is_open:
            raise RankError("this executor cannot run steps: it is closed or was not started")


def token_ids(step_id: int, num_rows: int, vocab_size: int) -> Int32Array:
    """Token ids that look arbitrary but follow from step and row alone."""
    rows = np.arange(num_rows, dtype=np.uint64)
    mixed = (rows + np.uint64(step_id + 1)) * np.uint64(0x9E3779B97F4A7C15)
    choices = max(1, vocab_size - FIRST_TOKEN_ID)
    return (FIRST_TOKEN_ID + (mixed >> np.uint64(33)) % np.uint64(choices)).astype(np.int32)
