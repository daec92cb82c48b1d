"""One replica of a simulated engine: its scheduler, its pipeline stages and their free times."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engine.config import Caps
from engine.executors.protocol import StepTimer
from engine.plan import Mode
from engine.policy import Order
from engine.request import Request
from engine.scheduled import ScheduledStep
from engine.scheduler import Scheduler
from engine.shift import ModeChooser
from engine.steps import StepShape

# Bulk stretches are timed at both ends and taken as straight between them.
MAX_BULK_STEPS = 64


@dataclass(kw_only=True)
class RunCounts:
    """Steps and busy seconds by mode, and what the scheduler had to do."""

    steps: dict[Mode, int] = field(default_factory=lambda: dict.fromkeys(Mode, 0))
    step_seconds: dict[Mode, float] = field(default_factory=lambda: dict.fromkeys(Mode, 0.0))
    mode_switches: int = 0
    decode_tokens_in_base: int = 0
    preemptions: int = 0
    scheduled_steps: int = 0

    @classmethod
    def total(cls, parts: Iterable[RunCounts]) -> RunCounts:
        """Counts of all replicas together."""
        total = cls()
        for part in parts:
            for mode in Mode:
                total.steps[mode] += part.steps[mode]
                total.step_seconds[mode] += part.step_seconds[mode]
            total.mode_switches += part.mode_switches
            total.decode_tokens_in_base += part.decode_tokens_in_base
            total.preemptions += part.preemptions
            total.scheduled_steps += part.scheduled_steps
        return total

    @property
    def num_steps(self) -> int:
        return sum(self.steps.values())


@dataclass(frozen=True, kw_only=True)
class Committed:
    """Requests that got a token at each of ``token_s``, and those that ended at the last."""

    request_ids: list[str]
    token_s: tuple[float, ...]
    finished: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class _Flight:
    """A step in flight, or a stretch of quiet steps that is committed already."""

    finish_s: float
    busy_s: float
    step: ScheduledStep | None = None
    stretch: Committed | None = None


class Replica:
    """Runs steps in virtual time. ``next_event_s`` is when its oldest step in flight ends."""

    def __init__(
        self,
        *,
        caps: Caps,
        chooser: ModeChooser,
        timer: StepTimer,
        num_kv_blocks: int,
        block_size: int,
        max_model_len: int,
        depth: int,
        order: Order,
    ) -> None:
        self.counts = RunCounts()
        self._scheduler = Scheduler(
            caps=caps,
            envelope=caps,
            chooser=chooser,
            num_blocks=num_kv_blocks,
            block_size=block_size,
            max_model_len=min(max_model_len, num_kv_blocks * block_size),
            depth=depth,
            order=order,
        )
        self._timer = timer
        self._paces_chunks = caps.max_step_ms is not None
        self._stage_free_s = [0.0] * depth
        self._host_free_s = 0.0
        self._flights: deque[_Flight] = deque()
        self._last_mode: Mode | None = None
        self._quiet_ids: list[str] = []
        self._load_tokens = 0

    @property
    def next_event_s(self) -> float:
        return self._flights[0].finish_s if self._flights else float("inf")

    @property
    def load_tokens(self) -> int:
        """Tokens its requests may still grow to: the load that routing balances."""
        return self._load_tokens

    def add(self, request: Request) -> None:
        """Queue a request. Raises RequestError or QueueFullError like the live scheduler."""
        self._scheduler.add(request)
        self._load_tokens += request.max_len

    @property
    def is_in_flight(self) -> bool:
        return bool(self._flights)

    def launch(self, now_s: float, horizon_s: float) -> None:
        """Fill the pipeline with steps that can start now.

        Before ``horizon_s`` nothing reaches this replica from outside, so decode steps up to
        there may be taken in one stretch.
        """
        if self._quiet_ids and self._skip(now_s, horizon_s):
            return
        while (step := self._scheduler.schedule()) is not None:
            shape = step.shape
            self._host_free_s = max(now_s, self._host_free_s) + self._timer.host_seconds(shape)
            stages = self._timer.stage_seconds(shape)
            finish_s = self._through_stages(self._host_free_s, stages)
            self._flights.append(_Flight(step=step, finish_s=finish_s, busy_s=sum(stages)))

    def commit(self) -> Committed:
        """Take in the oldest step (or stretch) in flight."""
        flight = self._flights.popleft()
        if flight.step is None:
            assert flight.stretch is not None, "a flight is a step or a stretch"
            return flight.stretch
        step, shape = flight.step, flight.step.shape
        outcome = self._scheduler.commit(step, None)
        self._count(shape, 1, flight.busy_s)
        if self._paces_chunks:
            self._scheduler.pace.observe(shape.mode, shape.num_tokens, flight.busy_s)
        self.counts.scheduled_steps += 1
        self.counts.preemptions = self._scheduler.counts.preemptions
        is_everyone = shape.num_seqs == self._scheduler.num_running and not outcome.finished
        self._quiet_ids = step.request_ids if is_everyone else []
        self._load_tokens -= sum(sequence.request.max_len for sequence, _ in outcome.finished)
        return Committed(
            request_ids=outcome.tokens,
            token_s=(flight.finish_s,),
            finished=[sequence.request_id for sequence, _ in outcome.finished],
        )

    def _skip(self, now_s: float, horizon_s: float) -> bool:
        """Put the quiet steps that start before ``horizon_s`` in flight as one stretch."""
        ends_s: list[float] = []
        end_s, busy_s = now_s, 0.0
        while end_s < horizon_s and (quiet := self._scheduler.quiet_steps()):
            shape = self._scheduler.quiet_shape()
            durations = self._durations(shape, min(quiet, MAX_BULK_STEPS))
            ends = end_s + np.cumsum(durations)
            # The step during which someone arrives is the last of the stretch.
            count = min(len(ends), int(np.searchsorted(ends, horizon_s)) + 1)
            self._scheduler.advance(count)
            stretch_s = float(durations[:count].sum()) - count * self._timer.host_seconds(shape)
            self._count(shape, count, stretch_s)
            busy_s += stretch_s
            ends_s.extend(ends[:count].tolist())
            end_s = ends_s[-1]
        if not ends_s:
            return False
        self._host_free_s = end_s
        self._stage_free_s = [end_s]
        stretch = Committed(request_ids=self._quiet_ids, token_s=tuple(ends_s))
        self._flights.append(_Flight(finish_s=end_s, busy_s=busy_s, stretch=stretch))
        return True

    def _durations(self, first: StepShape, count: int) -> npt.NDArray[np.float64]:
        """Seconds of each of ``count`` quiet steps: timed at both ends, straight between."""
        last = with_more_context(first, (count - 1) * first.num_seqs)
        return np.linspace(self._step_seconds(first), self._step_seconds(last), count)

    def _step_seconds(self, shape: StepShape) -> float:
        return self._timer.host_seconds(shape) + sum(self._timer.stage_seconds(shape))

    def _through_stages(self, ready_s: float, stages: tuple[float, ...]) -> float:
        """When a step that is ready now leaves the last stage; each stage holds one at a time."""
        for stage, seconds in enumerate(stages):
            ready_s = max(ready_s, self._stage_free_s[stage]) + seconds
            self._stage_free_s[stage] = ready_s
        return ready_s

    def _count(self, shape: StepShape, num_steps: int, busy_s: float) -> None:
        counts = self.counts
        counts.steps[shape.mode] += num_steps
        counts.step_seconds[shape.mode] += busy_s
        if shape.mode is Mode.BASE:
            counts.decode_tokens_in_base += shape.num_decode_tokens * num_steps
        if self._last_mode not in (None, shape.mode):
            counts.mode_switches += 1
        self._last_mode = shape.mode


def with_more_context(shape: StepShape, num_tokens: int) -> StepShape:
    """The same decode step with ``num_tokens`` more tokens of context."""
    return StepShape(
        mode=shape.mode,
        num_seqs=shape.num_seqs,
        num_decode_tokens=shape.num_decode_tokens,
        decode_context_tokens=shape.decode_context_tokens + num_tokens,
        num_sampled=shape.num_sampled,
    )
