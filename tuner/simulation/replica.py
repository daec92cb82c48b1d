"""One replica of a simulated engine: its scheduler, its pipeline stages and their free times."""

from __future__ import annotations

from collections import deque

import msgspec
import numpy as np

from engine.modes.chooser import ModeChooser
from engine.scheduler.packing import PackedRows
from engine.scheduler.scheduler import Scheduler
from engine.scheduler.skipping import with_more_context
from engine.scheduler.step import ScheduledStep
from engine.scheduler.table import Sequence
from engine.spec.plan import Mode
from engine.spec.request import Request
from engine.spec.settings import Caps, Order
from engine.spec.steps import StepShape
from tuner.simulation.log import MAX_STAMPS, FloatArray, RunCounts, Segment, TokenLog
from tuner.simulation.pipe import Pipe
from tuner.simulation.rounds import FullPipe, GroupSteps, run_rounds
from tuner.simulation.setup import ReplicaSetup

# Bulk stretches are timed at both ends and taken as straight between them.
MAX_BULK_STEPS = MAX_STAMPS
# Whoever watches a run sees it move: no stretch goes on after so many ends of requests.
MAX_ENDED = 50
# After step i (from 0) of a stretch: steps taken, and times the growth per step has added up.
_TAKEN = np.arange(1, MAX_BULK_STEPS + 1, dtype=np.float64)
_GROWN = _TAKEN * (_TAKEN - 1) / 2
_NO_ENDS = _TAKEN[:0]


class _Flight(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A step in flight, or a stretch of quiet steps that is committed already.

    ``span_s`` is how long the step takes from its start on the ranks; ``ended`` are the numbers of
    the requests that the stretch ended.
    """

    finish_s: float
    span_s: float = 0.0
    segment: Segment | None = None
    step: ScheduledStep | None = None
    ended: list[int] = []


class Replica:
    """Runs steps in virtual time. ``next_event_s`` is when its oldest step in flight ends.

    Requests are named by their numbers, the rows of ``log``; ``segments`` gets what ran.
    Nothing starts before ``ready_s``.
    """

    def __init__(
        self,
        setup: ReplicaSetup,
        *,
        number: int,
        log: TokenLog,
        segments: list[Segment],
        ready_s: float = 0.0,
    ) -> None:
        self.counts = RunCounts()
        self.ready_s = ready_s
        self.next_event_s = float("inf")
        self._number = number
        self._log, self._segments = log, segments
        self._scheduler = Scheduler(
            caps=setup.caps,
            envelope=setup.envelope,
            chooser=setup.chooser,
            num_blocks=setup.num_kv_blocks,
            block_size=setup.block_size,
            max_model_len=min(setup.max_model_len, setup.num_kv_blocks * setup.block_size),
            depth=setup.depth,
            order=setup.order,
            keeps_prefixes=setup.keeps_prefixes,
        )
        self._timer = setup.timer
        self._stops_at_ends = setup.stops_at_ends
        self._schedules_ahead = setup.schedules_ahead
        # Requests that were seen while steps were in flight, and since when steps are known.
        self._lobby: list[Request] = []
        self._scheduled_s = ready_s
        self._pipe = Pipe.ready(setup.depth, ready_s)
        self._flights: deque[_Flight] = deque()
        self._last_mode: Mode | None = None
        self._request_of_slot = np.zeros(setup.envelope.max_num_seqs, dtype=np.int64)

    # -- questions ---------------------------------------------------------------------------

    @property
    def load_tokens(self) -> int:
        """Tokens its requests may still grow to: the load that routing balances."""
        return self._scheduler.load_tokens + sum(request.max_len for request in self._lobby)

    @property
    def num_running(self) -> int:
        return self._scheduler.num_running

    @property
    def num_waiting(self) -> int:
        return self._scheduler.num_waiting + len(self._lobby)

    @property
    def kv_usage(self) -> float:
        return self._scheduler.kv_usage

    @property
    def is_in_flight(self) -> bool:
        return bool(self._flights)

    # -- commands ----------------------------------------------------------------------------

    def add(self, request: Request, *, is_admitted: bool = False) -> None:
        """Queue a request; ``is_admitted``: it was held to the limit before. Raises RequestError
        or QueueFullError like the live scheduler."""
        if not (self._schedules_ahead and self._flights):
            self._scheduler.add(request, is_admitted=is_admitted)
            return
        self._scheduler.check_request(request)
        if not is_admitted:
            self._scheduler.check_queue(len(self._lobby))
        self._lobby.append(request)

    def adopt(self, sequences: list[Sequence]) -> None:
        """Queue sequences of another replica with their tokens so far."""
        self._scheduler.adopt(sequences)

    def release(self) -> list[Sequence]:
        """Take every sequence out, for other replicas to adopt; nothing may be in flight."""
        assert not self._flights, "steps in flight end first"
        self._let_in(float("inf"))
        return self._scheduler.release()

    def set_hot(self, *, caps: Caps, chooser: ModeChooser, order: Order) -> None:
        """Obey other settings from the next step on."""
        self._scheduler.set_hot(caps=caps, chooser=chooser, order=order)

    def launch(self, now_s: float, horizon_s: float) -> None:
        """Fill the pipeline with steps that can start now.

        Before ``horizon_s`` nothing reaches this replica from outside, so decode steps up to
        there may be taken in one stretch.
        """
        if now_s < self.ready_s:
            return
        if self._lobby:
            self._let_in(now_s if self._scheduler.is_idle else self._scheduled_s)
        self._scheduled_s = now_s
        if self._take_ahead(now_s, horizon_s):
            return
        while (step := self._scheduler.schedule()) is not None:
            self._start(step, now_s)

    def wind_down(self) -> None:
        """Start nothing more: what is in flight ends, and nothing follows it."""

    def commit(self) -> list[int]:
        """Take in the oldest step (or stretch) in flight; the requests that ended with it."""
        flight = self._flights.popleft()
        self.next_event_s = self._flights[0].finish_s if self._flights else float("inf")
        if flight.step is None:
            return flight.ended
        assert flight.segment is not None, "a step has its segment"
        step = flight.step
        requests = self._request_of_slot[step.sampled_slots]
        ended = self._scheduler.commit_lengths(step)
        self._log.stamp(requests, flight.finish_s)
        self._record(flight.segment)
        self._learn(flight.segment, flight.span_s)
        self.counts.scheduled_steps += 1
        return [int(sequence.request_id) for sequence in ended]

    def finish_counts(self) -> RunCounts:
        """The counts, with what the scheduler has counted."""
        counted = self._scheduler.counts
        self.counts.preemptions = counted.preemptions
        self.counts.prefix_queries = counted.prefix_queries
        self.counts.prefix_hits = counted.prefix_hits
        return self.counts

    # -- parts -------------------------------------------------------------------------------

    def _start(self, step: ScheduledStep, now_s: float) -> float:
        """Put a scheduled step in flight; how long the ranks have waited for it."""
        for placed in step.placed:
            self._request_of_slot[placed.slot] = int(placed.sequence.request_id)
        begun_s = max(now_s, self._pipe.host_free_s)
        started_s = self._pipe.prepare(now_s, self._timer.host_seconds(step.shape))
        stage_s = self._timer.stage_seconds(step.shape)
        idle_s = self._pipe.stages.idle_s(started_s)
        finish_s = self._pipe.send(started_s, stage_s)
        segment = self._segment(step.shape, begun_s, (finish_s,), sum(stage_s))
        span_s = finish_s - started_s
        self._fly(_Flight(step=step, finish_s=finish_s, span_s=span_s, segment=segment))
        return idle_s

    def _learn(self, step: Segment, span_s: float) -> None:
        """Let the scheduler know how long a step took, where it sizes chunks by that."""
        if self._scheduler.caps.max_step_ms is not None:
            self._scheduler.pace.observe(step.shape.mode, step.shape.num_tokens, span_s)

    def _let_in(self, seen_by_s: float) -> None:
        """Queue the requests that were seen in time for the step that is now put in flight."""
        waiting, self._lobby = self._lobby, []
        for request in waiting:
            if request.arrival_s <= seen_by_s:
                self._scheduler.add(request, is_admitted=True)
            else:
                self._lobby.append(request)

    def _take_ahead(self, now_s: float, horizon_s: float) -> bool:
        """Take the steps that need no look from outside in one stretch, if there are any."""
        if self._scheduler.caps.max_step_ms is not None:
            return False  # the scheduler learns from every single step
        if self._flights or self._scheduler.depth > 1:
            return not self._lobby and self._take_rounds(now_s, horizon_s)
        # Whoever waits in the lobby is let in after one more step.
        return self._take_stretch(now_s, horizon_s, 1 if self._lobby else MAX_BULK_STEPS)

    def _take_stretch(self, now_s: float, horizon_s: float, most: int) -> bool:
        """Put steps that start before ``horizon_s`` in flight as one stretch: quiet ones in parts
        of at most ``most`` (1 is all there are then), and others where nobody looks in between.
        """
        end_s = now_s
        ended: list[Sequence] = []
        while end_s < horizon_s:
            ends_s = self._quiet_ends(end_s, horizon_s, most)
            if len(ends_s):
                requests = self._request_of_slot[self._scheduler.running_slots]
                ended += (just_ended := self._scheduler.advance(len(ends_s)))
                self._log.stamp_each(requests, ends_s, has_ended=len(just_ended) > 0)
                self._scheduled_s = float(ends_s[-2]) if len(ends_s) > 1 else end_s
                end_s = float(ends_s[-1])
            elif (packed := self._scheduler.pack()) is not None:
                host_s = self._timer.host_seconds(packed.shape)
                busy_s = self._timer.stage_seconds(packed.shape)[0]
                segment = self._segment(packed.shape, end_s, (end_s + host_s + busy_s,), busy_s)
                self._scheduled_s = end_s
                if self._stops_at_ends and segment.end_s[0] > horizon_s:
                    # Whoever comes while it runs must find it running. Nobody has ended so far.
                    self._start(self._scheduler.launch(packed), end_s)
                    return True
                ended += self._take(packed, segment)
                end_s = segment.end_s[0]
            else:
                break
            if most == 1 or len(ended) >= (1 if self._stops_at_ends else MAX_ENDED):
                break
        if end_s == now_s:
            return False
        self._pipe.pass_to(end_s)
        self._fly(_Flight(finish_s=end_s, ended=[int(s.request_id) for s in ended]))
        return True

    def _take(self, packed: PackedRows, segment: Segment) -> list[Sequence]:
        """Commit a step as it begins, since nobody looks while it runs; the sequences that ended
        with it."""
        for placed in packed.placed:
            self._request_of_slot[placed.slot] = int(placed.sequence.request_id)
        taken = self._scheduler.take(packed)
        self._log.stamp(self._request_of_slot[taken.sampled_slots], segment.end_s[0])
        self._record(segment)
        self.counts.scheduled_steps += 1
        return taken.ended

    def _quiet_ends(self, start_s: float, horizon_s: float, most: int) -> FloatArray:
        """Ends of the next quiet steps, up to ``most`` and to the first that ends at
        ``horizon_s`` or later; each run of them is recorded."""
        found: list[FloatArray] = []
        for run in self._scheduler.quiet_steps(most):
            ends_s, busy_s = self._stretch(run.shape, start_s, run.count, horizon_s)
            count = len(ends_s)
            has_end = run.has_end and count == run.count
            if has_end and self._stops_at_ends and ends_s[-1] > horizon_s:
                # Someone arrives in the step that ends a request, and must find it running.
                if count == 1:
                    break
                ends_s, busy_s = self._stretch(run.shape, start_s, count - 1, horizon_s)
            found.append(ends_s)
            self._record(self._segment(run.shape, start_s, tuple(ends_s.tolist()), busy_s))
            start_s = float(ends_s[-1])
            if len(ends_s) < run.count or start_s >= horizon_s or (has_end and self._stops_at_ends):
                break
        return found[0] if len(found) == 1 else np.concatenate([_NO_ENDS, *found])

    def _stretch(
        self, shape: StepShape, start_s: float, count: int, horizon_s: float
    ) -> tuple[FloatArray, float]:
        """Ends of up to ``count`` quiet steps, the last of which is the one during which someone
        arrives; and the ranks' seconds. Timed at both ends, straight between."""
        timer = self._timer
        host_s = last_host_s = timer.host_seconds(shape)
        first_s = host_s + timer.stage_seconds(shape)[0]
        growth_s = 0.0
        if count > 1:
            last = with_more_context(shape, (count - 1) * shape.num_seqs)
            last_host_s = timer.host_seconds(last)
            last_s = last_host_s + timer.stage_seconds(last)[0]
            growth_s = (last_s - first_s) / (count - 1)
        ends_s = start_s + first_s * _TAKEN[:count] + growth_s * _GROWN[:count]
        if ends_s[-1] > horizon_s:
            ends_s = ends_s[: int(np.searchsorted(ends_s, horizon_s)) + 1]
        hosts_s = len(ends_s) * (host_s + last_host_s) / 2
        return ends_s, float(ends_s[-1]) - start_s - hosts_s

    def _take_rounds(self, now_s: float, horizon_s: float) -> bool:
        """Take the quiet rounds of a pipeline that are launched before ``horizon_s``; the steps
        that were in flight end in them, and their followers are in flight afterwards."""
        rounds = self._scheduler.quiet_rounds()
        if rounds is None:
            return False
        state = FullPipe(
            now_s=now_s,
            pipe=self._pipe.copy(),
            finish_s=deque(flight.finish_s for flight in self._flights),
        )
        groups, state = run_rounds(
            rounds, self._timer, state, most=MAX_BULK_STEPS, horizon_s=horizon_s
        )
        count = len(groups[0].ends_s)
        if not count:
            return False
        for flight in self._flights:
            assert flight.segment is not None, "steps of a pipeline have segments"
            self._record(flight.segment)
        for slots, group in zip(rounds.groups, groups, strict=True):
            self._log.stamp_each(self._request_of_slot[slots], np.array(group.token_s))
        steps = self._scheduler.advance_rounds(rounds, count)
        self._pipe = state.pipe
        self._record_group(groups[0], count)
        for group in groups[1:]:
            self._record_group(group, count - 1)
        self._flights.clear()
        self._fly(_Flight(finish_s=state.now_s))
        for step, group in zip(steps, groups[1:], strict=True):
            ends_s = (group.ends_s[-1],)
            started_s = group.starts_s[-1]
            segment = self._segment(step.shape, started_s, ends_s, group.busy_s[-1])
            span_s = ends_s[0] - started_s
            self._fly(_Flight(step=step, finish_s=ends_s[0], span_s=span_s, segment=segment))
        return True

    def _record_group(self, group: GroupSteps, count: int) -> None:
        """Keep the first ``count`` steps of a group as one segment."""
        if count:
            ends_s, busy_s = tuple(group.ends_s[:count]), sum(group.busy_s[:count])
            self._record(self._segment(group.shape, group.starts_s[0], ends_s, busy_s))

    def _segment(
        self, shape: StepShape, start_s: float, end_s: tuple[float, ...], busy_s: float
    ) -> Segment:
        return Segment(
            replica=self._number,
            shape=shape,
            start_s=start_s,
            end_s=end_s,
            busy_s=busy_s,
            num_waiting=self._scheduler.num_waiting,
            kv_usage=self._scheduler.kv_usage,
        )

    def _fly(self, flight: _Flight) -> None:
        self._flights.append(flight)
        self.next_event_s = self._flights[0].finish_s

    def _record(self, segment: Segment) -> None:
        """Keep a segment and count its steps."""
        counts, shape = self.counts, segment.shape
        self._segments.append(segment)
        counts.steps[shape.mode] += segment.num_steps
        counts.step_seconds[shape.mode] += segment.busy_s
        if shape.mode is Mode.BASE:
            counts.decode_tokens_in_base += shape.num_decode_tokens * segment.num_steps
        if self._last_mode not in (None, shape.mode):
            counts.mode_switches += 1
        self._last_mode = shape.mode
