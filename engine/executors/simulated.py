"""Runs nothing: steps take the time a timer says, on a virtual or a real clock; no torch."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import msgspec
import numpy as np

from engine.executors.protocol import (
    ENDED,
    Clock,
    ExecutorInfo,
    IsEnding,
    StepTimer,
    never_ends,
)
from engine.executors.stages import Stages
from engine.spec.errors import RankError
from engine.spec.plan import ParallelPlan
from engine.spec.steps import Int32Array, StepPlan, StepResult
from engine.wire.messages import ToRank
from engine.wire.rank_table import RankTable

ENDING_LOOK_S = 0.1
# Of the table that inputs are applied to.
NUM_SLOTS, MAX_BLOCKS_PER_SEQ = 1024, 2048
FIRST_TOKEN_ID = 3  # below lie the usual begin, end and padding ids


@dataclass(frozen=True, kw_only=True)
class _Running:
    step: StepPlan
    finish_s: float
    busy_s: float
    idle_s: float


class SimulatedExecutor:
    """Paces steps by ``timer``'s stage times; see ``engine.executors.protocol.Executor``.

    :class:`engine.executors.stages.Stages` says when each stage takes a step, so up to ``pp``
    steps overlap and one more waits. On a real clock the host time between steps passes by itself;
    on a virtual one the caller adds it. Token ids follow from step and row alone and are at least
    3, so that no usual end-of-text id appears.

    With ``applies_inputs`` it does a rank's host work too, in :meth:`submit`: the message is
    encoded, decoded and applied to a table of slots, and placeholders are filled. A step cannot
    begin before that is done. ``start_s``: seconds that :meth:`start` takes, unless
    ``is_ending`` says meanwhile that nobody needs it.
    """

    def __init__(
        self,
        *,
        plan: ParallelPlan,
        model_vocab_size: int,
        num_kv_blocks: int,
        timer: StepTimer,
        clock: Clock,
        start_s: float = 0.0,
        is_ending: IsEnding = never_ends,
        applies_inputs: bool = False,
    ) -> None:
        self._plan = plan
        self._vocab_size = model_vocab_size
        self._num_kv_blocks = num_kv_blocks
        self._timer = timer
        self._clock = clock
        self._start_s = start_s
        self._is_ending = is_ending
        self._inputs = _InputWork(num_kv_blocks) if applies_inputs else None
        self._stages = Stages([0.0] * plan.pp)
        self._running: deque[_Running] = deque()
        self._is_open = False

    @property
    def needs_inputs(self) -> bool:
        return self._inputs is not None

    def start(self) -> ExecutorInfo:
        started_s = self._clock.now() + self._start_s
        while (now_s := self._clock.now()) < started_s:
            if self._is_ending():
                raise RankError(ENDED)
            self._clock.sleep_until(min(started_s, now_s + ENDING_LOOK_S))
        self._is_open = True
        self._stages = Stages([self._clock.now()] * self._plan.pp)
        nothing = (0,) * self._plan.replica_size
        return ExecutorInfo(
            num_kv_blocks=self._num_kv_blocks,
            weight_bytes=nothing,
            kv_bytes=nothing,
            depth=self._plan.pp,
        )

    def submit(self, step: StepPlan) -> None:
        self._check_open()
        assert len(self._running) <= self._plan.pp, "more steps in flight than stages and one"
        if self._inputs is not None:
            self._inputs.run(step, self._token_ids(step))
        stage_s = self._timer.stage_seconds(step.shape)
        ready_s = self._clock.now()
        idle_s = self._stages.idle_s(ready_s)
        finish_s = self._stages.send(ready_s, stage_s)
        self._running.append(
            _Running(step=step, finish_s=finish_s, busy_s=sum(stage_s), idle_s=idle_s)
        )

    def is_ready(self, timeout_s: float) -> bool:
        if not self._is_open or not self._running:
            return True
        finish_s = self._running[0].finish_s
        self._clock.sleep_until(min(finish_s, self._clock.now() + timeout_s))
        return self._clock.now() >= finish_s

    def collect(self, timeout_s: float | None = None) -> StepResult:
        self._check_open()
        if not self._running:
            raise RankError("no step is in flight; submit one before collecting")
        done = self._running.popleft()
        step_id, until_s = done.step.step_id, done.finish_s
        if timeout_s is not None:
            until_s = min(until_s, self._clock.now() + timeout_s)
        self._clock.sleep_until(until_s)
        if until_s < done.finish_s:
            raise RankError(f"step {step_id} was not done within {timeout_s:g} s")
        return StepResult(
            step_id=step_id,
            token_ids=self._token_ids(done.step).tobytes(),
            idle_s=done.idle_s,
            forward_s=done.busy_s,
        )

    def check(self) -> None:
        self._check_open()

    def close(self) -> None:
        self._is_open = False
        self._running.clear()

    def _token_ids(self, step: StepPlan) -> Int32Array:
        return token_ids(step.step_id, step.shape.num_sampled, self._vocab_size)

    def _check_open(self) -> None:
        if not self._is_open:
            raise RankError("this executor cannot run steps: it is closed or was not started")


class _InputWork:
    """What a rank's host does with a message before the forward pass, and the tokens it keeps."""

    def __init__(self, num_kv_blocks: int) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(ToRank)
        max_blocks = min(num_kv_blocks, MAX_BLOCKS_PER_SEQ)
        self._table = RankTable(num_slots=NUM_SLOTS, max_blocks=max_blocks)
        self._last_tokens = np.zeros(NUM_SLOTS, np.int64)

    def run(self, step: StepPlan, sampled_ids: Int32Array) -> None:
        """Apply ``step``, whose sampled rows will get ``sampled_ids`` i4[R]."""
        message = self._decoder.decode(self._encoder.encode(step))
        assert isinstance(message, StepPlan), "a step stays a step on its way"
        rows = self._table.apply(message)
        ids = rows.token_ids.astype(np.int64)
        ids[rows.placeholder_at] = self._last_tokens[rows.placeholder_slots]
        self._last_tokens[rows.sample_slots] = sampled_ids


def token_ids(step_id: int, num_rows: int, vocab_size: int) -> Int32Array:
    """Token ids that look arbitrary but follow from step and row alone."""
    rows = np.arange(num_rows, dtype=np.uint64)
    mixed = (rows + np.uint64(step_id + 1)) * np.uint64(0x9E3779B97F4A7C15)
    choices = max(1, vocab_size - FIRST_TOKEN_ID)
    return (FIRST_TOKEN_ID + (mixed >> np.uint64(33)) % np.uint64(choices)).astype(np.int32)
