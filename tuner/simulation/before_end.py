"""Steps that are queued one ahead, in virtual time: what the live engine's loop does.

Shortly before a step is expected to end, the next one is scheduled on the assumption that nothing
stops, and queued behind it. So a request that comes later misses that step, rows and KV blocks that
the running step will free still count as taken, and the host works while the ranks do. It repeats
the turns of ``engine.replica.step_loop``: every step is scheduled, none is skipped.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from engine.modes.pace import ahead_lead_s
from engine.replica.step_loop import HOST_DECAY
from engine.scheduler.step import ScheduledStep
from engine.spec.request import Request
from tuner.simulation.steps import Flight, Steps


@dataclass(kw_only=True)
class _Place:
    """What the loop knows about a step in flight. ``started_s`` is None while it waits behind steps
    that fill the ranks; ``waited_s`` is how long the ranks stood idle before it."""

    submitted_s: float
    started_s: float | None
    waited_s: float


class BeforeEnd:
    """See :class:`tuner.simulation.turns.Turns`. Between the ends of steps it looks ahead:
    :meth:`commit` begins a look when it is due, and :meth:`launch` then queues a step.
    """

    held: tuple[Request, ...] = ()

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._scheduler = steps.scheduler
        self._places: deque[_Place] = deque()
        self._look_s: float | None = None
        self._is_looking = False
        # Whether the oldest result came before anybody waited for it.
        self._is_late = False
        self._host_s = 0.0

    @property
    def next_event_s(self) -> float:
        if self._look_s is not None:
            return self._look_s
        # If a result comes while the host works, it is taken in after that work.
        return max(self._steps.next_end_s, self._steps.pipe.host_free_s)

    def add(self, request: Request) -> None:
        self._scheduler.add(request, is_in_book=True)

    def launch(self, now_s: float, horizon_s: float) -> None:  # noqa: ARG002 (nothing is skipped)
        if self._is_looking:
            self._is_looking = False
            self._queue_next(now_s)
        else:
            self._fill(now_s)
            self._plan_look(now_s)

    def commit(self, now_s: float) -> list[int]:
        if self._look_s is not None:
            self._look_s, self._is_looking = None, True
            return []
        first = self._steps.flights[0]
        self._is_late |= now_s > first.finish_s
        self._learn(first, now_s)
        return self._steps.end_oldest(now_s)

    def wind_down(self) -> None:
        self._look_s, self._is_looking = None, False

    def let_all_in(self) -> None:
        """Everybody is in."""

    # -- parts -------------------------------------------------------------------------------

    def _fill(self, now_s: float) -> None:
        """Send steps until the ranks have no room or nothing can run."""
        while (step := self._scheduler.schedule()) is not None:
            self._submit(step, now_s, is_queued=False)

    def _queue_next(self, now_s: float) -> None:
        """Schedule one step ahead of those that run, and queue it behind them."""
        step = self._scheduler.schedule_ahead()
        if step is not None:
            self._submit(step, now_s, is_queued=True)

    def _submit(self, step: ScheduledStep, now_s: float, *, is_queued: bool) -> None:
        stages_before = self._steps.pipe.stages.copy()
        flight = self._steps.start(step, now_s)
        host_s = self._steps.timer.host_seconds(step.shape)
        self._host_s = max(host_s, self._host_s * HOST_DECAY)
        self._places.append(
            _Place(
                submitted_s=flight.started_s,
                started_s=None if is_queued else flight.started_s,
                # A step sent to idle ranks waited for nothing after it was sent.
                waited_s=stages_before.idle_s(flight.started_s) if is_queued else 0.0,
            )
        )

    def _plan_look(self, now_s: float) -> None:
        """When to look ahead behind the oldest step: now, later, or not before it ends."""
        self._look_s, self._is_late = None, False
        if not self._steps.flights:
            return
        now_s = max(now_s, self._steps.pipe.host_free_s)
        finish_s, begin_s = self._steps.next_end_s, self._ahead_at_s()
        if begin_s <= now_s:
            self._is_late = finish_s <= now_s
            self._look_s = now_s
        elif begin_s < finish_s:
            self._look_s = begin_s
        else:
            self._is_late = True

    def _ahead_at_s(self) -> float:
        """When to look ahead: at once while steps like this one are unknown."""
        step, place = self._steps.flights[0].step, self._places[0]
        assert step is not None, "every step is scheduled"
        expected_s = self._scheduler.packer.pace.seconds(step.shape.mode, step.shape.num_tokens)
        if expected_s is None or place.started_s is None:
            return 0.0
        return place.started_s + expected_s - ahead_lead_s(expected_s, self._host_s)

    def _learn(self, oldest: Flight, ended_s: float) -> None:
        """Let the pace learn the oldest step as the live loop times it: from when ranks had room
        for it.
        """
        place, segment = self._places.popleft(), oldest.segment
        assert place.started_s is not None, "the oldest step runs"
        assert segment is not None, "every step is scheduled"
        if self._is_late:
            ended_s = min(ended_s, place.started_s + place.waited_s + segment.busy_s)
        behind = self._scheduler.depth - 1
        if len(self._places) > behind and self._places[behind].started_s is None:
            self._places[behind].started_s = max(ended_s, self._places[behind].submitted_s)
        self._steps.observe(segment.shape, max(ended_s - place.started_s, 0.0))
