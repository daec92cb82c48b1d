"""When a replica schedules its steps, and who may join them: one class per way to look ahead.

:class:`AtEnd` does not look ahead; :class:`AtStart` decides as the step before starts. Deciding
shortly before that one ends has a file of its own, ``tuner.simulation.before_end``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from engine.spec.request import Request
from tuner.simulation.requests import NEVER_S
from tuner.simulation.steps import Steps
from tuner.simulation.stretches import MAX_BULK_STEPS, Stretches
from tuner.spec.prompt_wait import PromptWait, num_fitting


class Turns(Protocol):
    """Schedules the steps of one replica as one kind of engine does.

    A run calls :meth:`commit` at ``next_event_s`` and then :meth:`launch`; in between it adds the
    requests that have come. Requests in ``held`` are accepted, and not yet known to the scheduler.
    """

    @property
    def next_event_s(self) -> float:
        """When the replica wants to be called next; infinite while nothing is in flight."""
        ...

    @property
    def held(self) -> Sequence[Request]: ...

    def add(self, request: Request) -> None:
        """Take in a request that the scheduler has admitted."""
        ...

    def launch(self, now_s: float, horizon_s: float) -> None:
        """Put steps in flight that can start now. Before ``horizon_s`` nobody looks."""
        ...

    def commit(self, now_s: float) -> list[int]:
        """Take in what ends now; the requests that ended with it."""
        ...

    def wind_down(self) -> None:
        """Start nothing more: what is in flight ends, and nothing follows it."""
        ...

    def let_all_in(self) -> None:
        """Hand the held requests to the scheduler."""
        ...


class AtEnd:
    """A step is scheduled when the one before has ended; stretches of steps are skipped."""

    def __init__(self, steps: Steps, *, stops_at_ends: bool) -> None:
        self.held: list[Request] = []
        self._steps = steps
        self._flights = steps.flights
        self._scheduler = steps.scheduler
        self._stretches = Stretches(steps, stops_at_ends=stops_at_ends)

    @property
    def next_event_s(self) -> float:
        return self._flights[0].finish_s if self._flights else NEVER_S

    def add(self, request: Request) -> None:
        self._scheduler.add(request, is_in_book=True)

    def launch(self, now_s: float, horizon_s: float) -> None:
        if not self._stretches.take(now_s, horizon_s):
            self._fill(now_s)

    def commit(self, now_s: float) -> list[int]:
        flight = self._flights[0]
        if flight.segment is not None and self._scheduler.packer.caps.max_step_ms is not None:
            self._steps.observe(flight.segment.shape, flight.finish_s - flight.started_s)
        return self._steps.end_oldest(now_s)

    def wind_down(self) -> None:
        """Nothing is planned beyond the steps in flight."""

    def let_all_in(self) -> None:
        """Everybody is in."""

    def _fill(self, now_s: float) -> None:
        while (step := self._scheduler.schedule()) is not None:
            self._steps.start(step, now_s)


class AtStart(AtEnd):
    """A step is scheduled when the one before starts; later requests miss it and are held. With a
    ``wait`` they may be held longer, for others to join their step."""

    def __init__(self, steps: Steps, *, stops_at_ends: bool, wait: PromptWait) -> None:
        super().__init__(steps, stops_at_ends=stops_at_ends)
        self._wait = wait
        self._num_waited = 0

    def add(self, request: Request) -> None:
        if self._flights:
            self.held.append(request)
        else:
            super().add(request)

    def launch(self, now_s: float, horizon_s: float) -> None:
        if self.held:
            self._let_in(now_s if self._scheduler.is_idle else self._stretches.scheduled_s)
        # Requests that are still held are let in after one more step.
        if not self._stretches.take(now_s, horizon_s, 1 if self.held else MAX_BULK_STEPS):
            self._fill(now_s)

    def let_all_in(self) -> None:
        held, self.held = self.held, []
        for request in held:
            super().add(request)

    def _let_in(self, seen_by_s: float) -> None:
        """Let in the requests that were seen in time for the step that is now put in flight, as
        many as the wait lets."""
        seen = [request for request in self.held if request.arrival_s <= seen_by_s]
        self.held = [request for request in self.held if request.arrival_s > seen_by_s]
        count = self._num_let_in(seen) if seen and self._wait.is_on else len(seen)
        self.held[:0] = seen[count:]
        for request in seen[:count]:
            super().add(request)

    def _num_let_in(self, seen: Sequence[Request]) -> int:
        """How many of the first of ``seen`` need not wait for another step."""
        running = len(self._scheduler.running)
        budget = self._scheduler.packer.caps.max_num_batched_tokens
        count, tokens = num_fitting([len(r.prompt_ids) for r in seen], running, budget)
        if running and self._wait.goes_on(self._num_waited, tokens, budget):
            self._num_waited += 1
            return 0
        self._num_waited = 0
        return count
