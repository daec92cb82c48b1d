"""The steps of one replica in virtual time: put in flight, taken in and written down."""

from __future__ import annotations

from collections import deque

import msgspec
import numpy as np

from engine.scheduler.skipping import SkippingScheduler
from engine.scheduler.step import PlacedSequence, ScheduledStep, SlotArray
from engine.scheduler.table import Sequence
from engine.spec.modes import BASE, Mode
from engine.spec.steps import StepShape
from tuner.simulation.log import IntArray, RunCounts, Segment, TokenLog
from tuner.simulation.outlet import Outlet
from tuner.simulation.pipe import Pipe
from tuner.simulation.requests import NEVER_S
from tuner.simulation.setup import ReplicaSetup


class Flight(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A step in flight, or a stretch of steps that is committed already.

    A step is ready for the ranks at ``started_s``; ``ended`` are the numbers of the requests that a
    stretch ended.
    """

    finish_s: float
    started_s: float = 0.0
    segment: Segment | None = None
    step: ScheduledStep | None = None
    ended: list[int] = []


class Steps:
    """The scheduler, the pipe and the steps in flight of one replica.

    Requests are named by their numbers, the rows of ``log``; ``segments`` gets what ran.
    """

    def __init__(
        self, setup: ReplicaSetup, *, number: int, log: TokenLog, segments: list[Segment]
    ) -> None:
        settings, engine = setup.settings, setup.engine
        self.scheduler = SkippingScheduler(
            caps=settings.caps,
            envelope=setup.envelope,
            chooser=setup.chooser,
            num_blocks=setup.ranks.num_kv_blocks,
            block_size=engine.block_size,
            max_model_len=setup.max_model_len,
            depth=settings.plan.pp,
            order=settings.order,
            keeps_prefixes=engine.keeps_prefixes,
            step_order=engine.step_order,
        )
        self.timer = setup.ranks.timer
        self.pipe = Pipe(settings.plan.pp)
        self.flights: deque[Flight] = deque()
        self.counts = RunCounts()
        self.outlet = Outlet(log, busy_s=engine.front_end.busy_s)
        self._number, self._segments = number, segments
        self._last_mode: Mode | None = None
        self._request_of_slot = np.zeros(setup.envelope.max_num_seqs, dtype=np.int64)

    # -- questions ---------------------------------------------------------------------------

    @property
    def next_end_s(self) -> float:
        """When the oldest step in flight ends."""
        return self.flights[0].finish_s if self.flights else NEVER_S

    def numbers(self, slots: SlotArray) -> IntArray:
        """Numbers of the requests in these rows of the scheduler."""
        return self._request_of_slot[slots]

    def segment(
        self, shape: StepShape, start_s: float, end_s: tuple[float, ...], busy_s: float
    ) -> Segment:
        """Steps as they are scheduled now."""
        return Segment(
            replica=self._number,
            shape=shape,
            start_s=start_s,
            end_s=end_s,
            busy_s=busy_s,
            num_waiting=self.scheduler.num_waiting,
            kv_usage=self.scheduler.kv_usage,
        )

    # -- commands ----------------------------------------------------------------------------

    def start(self, step: ScheduledStep, now_s: float) -> Flight:
        """Put a scheduled step in flight."""
        self.seat(step.placed)
        begun_s = max(now_s, self.pipe.host_free_s)
        started_s = self.pipe.prepare(now_s, self.timer.host_seconds(step.shape))
        stage_s = self.timer.stage_seconds(step.shape)
        finish_s = self.pipe.stages.send(started_s, stage_s)
        segment = self.segment(step.shape, begun_s, (finish_s,), sum(stage_s))
        flight = Flight(step=step, started_s=started_s, finish_s=finish_s, segment=segment)
        self.flights.append(flight)
        return flight

    def end_oldest(self, now_s: float) -> list[int]:
        """Take in the oldest step (or stretch) in flight; returns the requests that ended with it.

        A step's tokens come out at ``now_s``, when somebody looks at them.
        """
        flight = self.flights.popleft()
        if flight.step is None:
            return flight.ended
        assert flight.segment is not None, "a step has its segment"
        step = flight.step
        requests = self._request_of_slot[step.sampled_slots]
        ended = self.scheduler.commit_lengths(step)
        self.outlet.stamp(requests, now_s)
        self.record(flight.segment)
        self.counts.scheduled_steps += 1
        return numbers_of(ended)

    def record(self, segment: Segment) -> None:
        """Keep a segment and count its steps."""
        counts, shape, num_steps = self.counts, segment.shape, segment.num_steps
        mode = shape.mode
        self._segments.append(segment)
        counts.count(mode, num_steps, segment.busy_s)
        if mode == BASE:
            counts.decode_tokens_in_base += shape.num_decode_tokens * num_steps
        if self._last_mode not in (None, mode):
            counts.mode_switches += 1
        self._last_mode = mode

    def seat(self, placed: list[PlacedSequence]) -> None:
        """Remember which requests took which rows."""
        for one in placed:
            self._request_of_slot[one.slot] = int(one.sequence.request_id)

    def observe(self, shape: StepShape, step_s: float) -> None:
        """Let the scheduler know how long a step took."""
        self.scheduler.packer.pace.observe(shape.mode, shape.num_tokens, step_s)


def numbers_of(sequences: list[Sequence]) -> list[int]:
    """Numbers of the requests behind these sequences."""
    return [int(sequence.request_id) for sequence in sequences]
