"""Time skipping: steps of one replica that need no look from outside, committed in one go.

A stretch goes on until somebody comes, or until a request ends where others would notice. Quiet
steps in it, in which nothing but lengths changes, are timed at both ends and taken as straight
between them.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from engine.scheduler.skipping import with_more_context
from engine.scheduler.step import PackedRows, ScheduledStep
from engine.scheduler.table import Sequence
from engine.spec.steps import StepShape
from tuner.simulation.log import MAX_STAMPS, FloatArray, Segment
from tuner.simulation.rounds import GroupSteps, run_rounds
from tuner.simulation.steps import Flight, Steps, numbers_of

MAX_BULK_STEPS = MAX_STAMPS
# A stretch stops after this many ends of requests, so that a watcher of the run sees progress.
MAX_ENDED = 50
# For each step of a stretch: how many steps are done after it, and how often the growth per step
# was added by then.
_TAKEN = np.arange(1, MAX_BULK_STEPS + 1, dtype=np.float64)
_GROWN = _TAKEN * (_TAKEN - 1) / 2
_NO_ENDS = _TAKEN[:0]


class Stretches:
    """Takes stretches of ``steps``; with ``stops_at_ends`` none goes past the end of a request.

    ``scheduled_s`` is when the newest step was scheduled.
    """

    def __init__(self, steps: Steps, *, stops_at_ends: bool) -> None:
        self.scheduled_s = 0.0
        self._steps = steps
        self._scheduler = steps.scheduler
        self._timer, self._outlet = steps.timer, steps.outlet
        self._stops_at_ends = stops_at_ends

    def take(self, now_s: float, horizon_s: float, most: int = MAX_BULK_STEPS) -> bool:
        """Put in flight the steps that need no look from outside before ``horizon_s``; False if
        there are none. Up to ``most`` quiet steps are taken at a time; with ``most`` 1 only one
        step in all.
        """
        self.scheduled_s = now_s
        if self._scheduler.packer.caps.max_step_ms is not None:
            return False  # the scheduler learns from every single step
        if self._steps.flights or self._scheduler.depth > 1:
            return most > 1 and self._take_rounds(now_s, horizon_s)
        return self._take_steps(now_s, horizon_s, most)

    def _take_steps(self, now_s: float, horizon_s: float, most: int) -> bool:
        """Take one step after the other: quiet ones, and others if nobody looks in between."""
        end_s = now_s
        ended: list[Sequence] = []
        while end_s < horizon_s:
            ends_s = self._quiet_ends(end_s, horizon_s, most)
            if len(ends_s):
                requests = self._steps.numbers(self._scheduler.running.slots)
                ended += (just_ended := self._scheduler.advance(len(ends_s)))
                self._outlet.stamp_each(requests, ends_s, has_ended=len(just_ended) > 0)
                self.scheduled_s = float(ends_s[-2]) if len(ends_s) > 1 else end_s
                end_s = float(ends_s[-1])
            elif (packed := self._scheduler.pack()) is not None:
                host_s = self._timer.host_seconds(packed.shape)
                busy_s = self._timer.stage_seconds(packed.shape)[0]
                segment = self._steps.segment(
                    packed.shape, end_s, (end_s + host_s + busy_s,), busy_s
                )
                self.scheduled_s = end_s
                if self._stops_at_ends and segment.end_s[0] > horizon_s:
                    # Requests that come while it runs must find it running. Nobody has ended so
                    # far.
                    self._steps.start(self._scheduler.launch(packed), end_s)
                    return True
                ended += self._take(packed, segment)
                end_s = segment.end_s[0]
            else:
                break
            if most == 1 or len(ended) >= (1 if self._stops_at_ends else MAX_ENDED):
                break
        if end_s == now_s:
            return False
        self._steps.pipe.pass_to(end_s)
        self._steps.flights.append(Flight(finish_s=end_s, ended=numbers_of(ended)))
        return True

    def _take(self, packed: PackedRows, segment: Segment) -> list[Sequence]:
        """Commit a step as it begins, since nobody looks while it runs; returns the sequences that
        end."""
        self._steps.seat(packed.placed)
        taken = self._scheduler.take(packed)
        self._outlet.stamp(self._steps.numbers(taken.sampled_slots), segment.end_s[0])
        self._steps.record(segment)
        self._steps.counts.scheduled_steps += 1
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
            self._steps.record(
                self._steps.segment(run.shape, start_s, tuple(ends_s.tolist()), busy_s)
            )
            start_s = float(ends_s[-1])
            if len(ends_s) < run.count or start_s >= horizon_s or (has_end and self._stops_at_ends):
                break
        if not found:
            return _NO_ENDS
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _stretch(
        self, shape: StepShape, start_s: float, count: int, horizon_s: float
    ) -> tuple[FloatArray, float]:
        """Ends of up to ``count`` quiet steps, up to the one during which someone arrives, and the
        ranks' seconds. Both ends are timed; the times between are interpolated.
        """
        timer = self._timer
        host_s = last_host_s = timer.host_seconds(shape)
        first_s = host_s + timer.stage_seconds(shape)[0]
        growth_s = 0.0
        if count > 1:
            last = with_more_context(shape, (count - 1) * shape.num_seqs)
            last_host_s = timer.host_seconds(last)
            last_s = last_host_s + timer.stage_seconds(last)[0]
            growth_s = (last_s - first_s) / (count - 1)
        # Step i takes first_s + i * growth_s; the ends are running sums of that.
        ends_s = start_s + first_s * _TAKEN[:count] + growth_s * _GROWN[:count]
        if ends_s[-1] > horizon_s:
            ends_s = ends_s[: int(ends_s.searchsorted(horizon_s)) + 1]
        hosts_s = len(ends_s) * (host_s + last_host_s) / 2
        return ends_s, float(ends_s[-1]) - start_s - hosts_s

    def _take_rounds(self, now_s: float, horizon_s: float) -> bool:
        """Take the quiet rounds of a pipeline that are launched before ``horizon_s``; the steps
        that were in flight end in them, and their followers are in flight afterwards."""
        rounds = self._scheduler.quiet_rounds()
        if rounds is None:
            return False
        flights = self._steps.flights
        groups = run_rounds(
            rounds,
            self._timer,
            self._steps.pipe,
            deque(flight.finish_s for flight in flights),
            now_s=now_s,
            most=MAX_BULK_STEPS,
            horizon_s=horizon_s,
        )
        count = len(groups[0].ends_s)
        if not count:
            return False
        for flight in flights:
            assert flight.segment is not None, "steps of a pipeline have segments"
            self._steps.record(flight.segment)
        self._outlet.stamp_rounds(
            [self._steps.numbers(slots) for slots in rounds.groups],
            [group.token_s for group in groups],
        )
        steps = self._scheduler.advance_rounds(rounds, count)
        self._record_group(groups[0], count)
        for group in groups[1:]:
            self._record_group(group, count - 1)
        flights.clear()
        flights.append(Flight(finish_s=groups[0].token_s[-1]))
        for step, group in zip(steps, groups[1:], strict=True):
            flights.append(self._last_of(group, step))
        return True

    def _last_of(self, group: GroupSteps, step: ScheduledStep) -> Flight:
        """The last step of a group, which is in flight."""
        started_s, end_s = group.starts_s[-1], group.ends_s[-1]
        segment = self._steps.segment(step.shape, started_s, (end_s,), group.busy_s[-1])
        return Flight(step=step, started_s=started_s, finish_s=end_s, segment=segment)

    def _record_group(self, group: GroupSteps, count: int) -> None:
        """Keep the first ``count`` steps of a group as one segment."""
        if count:
            ends_s, busy_s = tuple(group.ends_s[:count]), sum(group.busy_s[:count])
            self._steps.record(self._steps.segment(group.shape, group.starts_s[0], ends_s, busy_s))
