"""Keeps the ranks of one replica busy: schedules, submits, collects and commits steps."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from engine.executors.protocol import Executor
from engine.modes.pace import ahead_lead_s
from engine.replica.messages_out import step_plan
from engine.scheduler.scheduler import Scheduler
from engine.scheduler.step import ScheduledStep, StepOutcome
from engine.spec.steps import StepResult, int32

# A rank counts as hung when a step takes this many times longer than similar ones took.
HANG_FACTOR = 10.0
MIN_HANG_S = 2.0
# New ranks load libraries in their first steps, so a slow one is no sign of a hang.
NUM_FIRST_STEPS = 4
# With each step the longest recent host time shrinks to this share.
HOST_DECAY = 0.9


@dataclass(kw_only=True, eq=False)
class Flight:
    """A step in flight: what the host spent on it, and when the ranks began it.

    ``is_queued``: it was sent behind steps that filled the ranks, and ``started_s`` is None while
    it waits for them. ``is_after_pause``: there was nothing to do before it, so nobody waited for
    the host.
    """

    step: ScheduledStep
    submitted_s: float
    schedule_s: float
    message_s: float
    is_after_pause: bool
    is_queued: bool
    started_s: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class FinishedStep:
    """A step whose result is committed. The ranks worked on it for ``step_s``; ``busy_s`` is the
    part of that in which no earlier step ran (less with several stages).
    """

    flight: Flight
    result: StepResult
    outcome: StepOutcome
    ended_s: float
    step_s: float
    busy_s: float

    @property
    def step(self) -> ScheduledStep:
        return self.flight.step

    @property
    def bubble_s(self) -> float:
        """How long the ranks waited for the host before this step, while there was work."""
        return 0.0 if self.flight.is_after_pause else self.result.idle_s


class StepLoop:
    """The steps of one scheduler on one executor. Owned by the replica's thread.

    ``step_timeout_s`` bounds steps of which nothing is known yet.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        *,
        step_timeout_s: float,
        return_logits: bool = False,
    ) -> None:
        self.patience = 1.0
        self._scheduler = scheduler
        self._pace = scheduler.packer.pace
        self._executor = executor
        self._step_timeout_s = step_timeout_s
        self._return_logits = return_logits
        self._flights: deque[Flight] = deque()
        self._has_paused = True
        self._host_s = 0.0
        self._num_collected = 0
        self._last_end_s = 0.0

    @property
    def is_busy(self) -> bool:
        """Whether a step is in flight."""
        return bool(self._flights)

    def fill(self) -> None:
        """Submit steps until the ranks have no room or nothing can run."""
        while True:
            begun_s = time.monotonic()
            step = self._scheduler.schedule()
            if step is None:
                break
            self._submit(step, begun_s, is_queued=False)
        if not self._flights:
            self._has_paused = True

    def wait_for_end(self) -> bool:
        """Wait until the oldest step is about to end; True when its result is there already.

        Scheduling late lets requests that arrive meanwhile into the very next step.
        """
        begin_s = self._ahead_at_s()
        while (left_s := begin_s - time.monotonic()) > 0:
            if self._executor.is_ready(left_s):
                return True
        return False

    def queue_next(self) -> None:
        """Schedule one step ahead of those that run, and queue it behind them."""
        begun_s = time.monotonic()
        step = self._scheduler.schedule_ahead()
        if step is not None:
            self._submit(step, begun_s, is_queued=True)

    def collect(self) -> FinishedStep:
        """Wait for the oldest step and commit it.

        Raises:
            RankError: a rank died, raised or hangs.
        """
        flight = self._flights[0]
        started_s = flight.submitted_s if flight.started_s is None else flight.started_s
        is_late = self._executor.is_ready(0.0)
        result = self._executor.collect(self._timeout_s(flight, started_s))
        now_s = time.monotonic()
        # If the result was there before we looked, the step ended earlier: the ranks' own times say
        # when. Idle time before a step counts only if it was queued; if it was sent to idle ranks,
        # that time lies before the sending.
        waited_s = result.idle_s if flight.is_queued else 0.0
        ended_s = min(now_s, started_s + waited_s + result.rank_s) if is_late else now_s
        self._flights.popleft()
        self._begin_next(ended_s)
        step_s = max(ended_s - started_s, 0.0)
        busy_s = max(ended_s - max(started_s, self._last_end_s), 0.0)
        self._last_end_s = ended_s
        self._num_collected += 1
        shape = flight.step.shape
        self._pace.observe(shape.mode, shape.num_tokens, step_s)
        outcome = self._scheduler.commit(flight.step, int32(result.token_ids))
        return FinishedStep(
            flight=flight,
            result=result,
            outcome=outcome,
            ended_s=now_s,
            step_s=step_s,
            busy_s=busy_s,
        )

    def forget(self) -> None:
        """Drop the steps in flight: their ranks are gone."""
        self._flights.clear()
        self._has_paused = True

    def _submit(self, step: ScheduledStep, begun_s: float, *, is_queued: bool) -> None:
        scheduled_s = time.monotonic()
        plan = step_plan(
            step,
            with_inputs=self._executor.needs_inputs,
            return_logits=self._return_logits,
            eos_token_ids=self._scheduler.roster.eos_token_ids,
        )
        flight = Flight(
            step=step,
            submitted_s=scheduled_s,
            schedule_s=scheduled_s - begun_s,
            message_s=0.0,
            is_after_pause=self._has_paused,
            is_queued=is_queued,
            started_s=None,
        )
        self._flights.append(flight)
        self._executor.submit(plan)
        flight.submitted_s = time.monotonic()
        flight.message_s = flight.submitted_s - scheduled_s
        flight.started_s = None if is_queued else flight.submitted_s
        self._has_paused = False
        spent_s = flight.schedule_s + flight.message_s
        self._host_s = max(spent_s, self._host_s * HOST_DECAY)

    def _begin_next(self, now_s: float) -> None:
        """Note that the queued step, if there is one, has begun."""
        depth = self._scheduler.depth
        if len(self._flights) >= depth and self._flights[depth - 1].started_s is None:
            queued = self._flights[depth - 1]
            queued.started_s = max(now_s, queued.submitted_s)

    def _ahead_at_s(self) -> float:
        """When to schedule the next step; at once while steps like this one are unknown."""
        flight = self._flights[0]
        expected_s = self._expected_s(flight)
        if expected_s is None or flight.started_s is None:
            return 0.0
        return flight.started_s + expected_s - ahead_lead_s(expected_s, self._host_s)

    def _timeout_s(self, flight: Flight, started_s: float) -> float:
        """How much longer the oldest step may take."""
        shape = flight.step.shape
        slow_s = self._pace.slowest_seconds(shape.mode, shape.num_tokens)
        if slow_s is None or self._num_collected < NUM_FIRST_STEPS:
            return self._step_timeout_s * self.patience
        limit_s = max(MIN_HANG_S, HANG_FACTOR * slow_s) * self.patience
        return max(started_s + limit_s - time.monotonic(), 0.0)

    def _expected_s(self, flight: Flight) -> float | None:
        shape = flight.step.shape
        return self._pace.seconds(shape.mode, shape.num_tokens)
