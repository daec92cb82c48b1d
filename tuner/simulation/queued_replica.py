"""A replica whose steps are queued one ahead, in virtual time: what the live engine's loop does.

Shortly before a step is expected to end, the next one is scheduled on the assumption that nothing
stops, and queued behind it. So a request that comes after that misses it, rows and KV blocks that
the running step frees are still taken, and the host's work hides behind the ranks'. See
``engine.replica.step_loop``, whose turns this repeats; every step is scheduled, none is skipped.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import msgspec

from engine.modes.pace import ahead_lead_s
from engine.replica.step_loop import HOST_DECAY
from engine.scheduler.step import ScheduledStep
from tuner.simulation.log import Segment, TokenLog
from tuner.simulation.replica import Replica
from tuner.simulation.setup import ReplicaSetup


@dataclass(kw_only=True)
class _Place:
    """What the loop knows of a step in flight. ``started_s`` is None while it waits behind steps
    that fill the ranks; ``waited_s`` is how long the ranks stood idle before it."""

    submitted_s: float
    started_s: float | None
    waited_s: float


class QueuedReplica(Replica):
    """``next_event_s`` is when a step ends, or when the loop looks ahead behind it."""

    def __init__(
        self,
        setup: ReplicaSetup,
        *,
        number: int,
        log: TokenLog,
        segments: list[Segment],
        ready_s: float = 0.0,
    ) -> None:
        super().__init__(setup, number=number, log=log, segments=segments, ready_s=ready_s)
        self._places: deque[_Place] = deque()
        self._look_s: float | None = None
        self._is_looking = False
        # Whether the oldest result is there before anybody waits for it.
        self._is_late = False
        self._host_s = self._ended_s = 0.0

    def launch(self, now_s: float, horizon_s: float) -> None:  # noqa: ARG002 (nothing is skipped)
        """Fill the pipeline, or queue one step behind a full one when it is time for that."""
        if now_s < self.ready_s:
            return
        if self._is_looking:
            self._is_looking = False
            self._look_ahead(now_s)
        else:
            while (step := self._scheduler.schedule()) is not None:
                self._submit(step, now_s, is_queued=False)
            self._plan_look(now_s)
        if self._look_s is not None:
            self.next_event_s = self._look_s
        elif self._flights:
            # A result that comes while the host is at work waits for it.
            self.next_event_s = max(self._flights[0].finish_s, self._pipe.host_free_s)

    def wind_down(self) -> None:
        """Do not look ahead any more."""
        self._look_s, self._is_looking = None, False
        if self._flights:
            self.next_event_s = max(self._flights[0].finish_s, self._pipe.host_free_s)

    def commit(self) -> list[int]:
        """Take in the oldest step, or begin to look ahead; the requests that ended."""
        if self._look_s is not None:
            self._look_s = None
            self._is_looking = True
            return []
        first = self._flights[0]
        self._ended_s = max(first.finish_s, self._pipe.host_free_s)
        if self._ended_s > first.finish_s:
            self._is_late = True
            self._flights[0] = msgspec.structs.replace(first, finish_s=self._ended_s)
        return super().commit()

    def _learn(self, step: Segment, span_s: float) -> None:  # noqa: ARG002 - includes waiting
        """Every step, as the loop sees it: from when the ranks were free for it."""
        place, ended_s = self._places.popleft(), self._ended_s
        assert place.started_s is not None, "the oldest step runs"
        if self._is_late:
            ended_s = min(ended_s, place.started_s + place.waited_s + step.busy_s)
        behind = self._scheduler.depth - 1
        if len(self._places) > behind and self._places[behind].started_s is None:
            self._places[behind].started_s = max(ended_s, self._places[behind].submitted_s)
        step_s = max(ended_s - place.started_s, 0.0)
        self._scheduler.pace.observe(step.shape.mode, step.shape.num_tokens, step_s)

    def _plan_look(self, now_s: float) -> None:
        """When to look ahead behind the oldest step: now, later, or not before it ends."""
        self._look_s, self._is_late = None, False
        if not self._flights:
            return
        now_s = max(now_s, self._pipe.host_free_s)
        finish_s, begin_s = self._flights[0].finish_s, self._ahead_at_s()
        if begin_s <= now_s:
            self._is_late = finish_s <= now_s
            self._look_s = now_s
        elif begin_s < finish_s:
            self._look_s = begin_s
        else:
            self._is_late = True

    def _ahead_at_s(self) -> float:
        """At once while steps like this one are unknown."""
        step, place = self._flights[0].step, self._places[0]
        assert step is not None, "every step is scheduled"
        expected_s = self._scheduler.pace.seconds(step.shape.mode, step.shape.num_tokens)
        if expected_s is None or place.started_s is None:
            return 0.0
        return place.started_s + expected_s - ahead_lead_s(expected_s, self._host_s)

    def _look_ahead(self, now_s: float) -> None:
        step = self._scheduler.schedule_ahead()
        if step is not None:
            self._submit(step, now_s, is_queued=True)

    def _submit(self, step: ScheduledStep, now_s: float, *, is_queued: bool) -> None:
        idle_s = self._start(step, now_s)
        ready_s = self._pipe.host_free_s
        self._host_s = max(self._timer.host_seconds(step.shape), self._host_s * HOST_DECAY)
        # What a step sent to idle ranks waited for lies before it was sent.
        waited_s = idle_s if is_queued else 0.0
        started_s = None if is_queued else ready_s
        self._places.append(_Place(submitted_s=ready_s, started_s=started_s, waited_s=waited_s))
