"""One replica of a simulated engine, as a run sees it."""

from __future__ import annotations

from typing import assert_never

from engine.scheduler.table import Sequence
from engine.spec.request import Request
from engine.transition.planning import Slot
from tuner.simulation.before_end import BeforeEnd
from tuner.simulation.log import RunCounts, Segment, TokenLog
from tuner.simulation.setup import ReplicaSetup
from tuner.simulation.steps import Steps
from tuner.simulation.turns import AtEnd, AtStart, Turns
from tuner.spec.look_ahead import LookAhead


class SimulatedReplica:
    """Runs steps in virtual time.

    Requests are named by their numbers, the rows of ``log``; ``segments`` gets what ran. ``slot``
    are its devices.

    Raises:
        PolicyError: a mode or threshold that the plan does not have.
    """

    def __init__(
        self,
        setup: ReplicaSetup,
        *,
        number: int,
        slot: Slot,
        log: TokenLog,
        segments: list[Segment],
    ) -> None:
        self.slot = slot
        self.is_winding_down = False
        self._steps = Steps(setup, number=number, log=log, segments=segments)
        self._scheduler, self._flights = self._steps.scheduler, self._steps.flights
        self._turns = _turns(setup, self._steps)

    # -- questions ---------------------------------------------------------------------------

    @property
    def next_event_s(self) -> float:
        """When to :meth:`commit` next, which may only begin a look ahead."""
        return self._turns.next_event_s

    @property
    def load_tokens(self) -> int:
        """Tokens its requests may still grow to: the load that routing balances."""
        return self._scheduler.roster.load.tokens

    @property
    def num_waiting(self) -> int:
        return self._scheduler.num_waiting + len(self._turns.held)

    @property
    def kv_usage(self) -> float:
        return self._scheduler.kv_usage

    @property
    def is_empty(self) -> bool:
        """Whether it has no request at all."""
        return not self.is_in_flight and not self.num_waiting and not self.load_tokens

    @property
    def is_in_flight(self) -> bool:
        return bool(self._flights)

    # -- commands ----------------------------------------------------------------------------

    def take_in(self, at_s: float, seconds: float) -> float:
        """When its front end has taken in a request that comes at ``at_s``, in so many
        ``seconds`` once it is that one's turn."""
        return self._steps.outlet.take_in(at_s, seconds)

    def add(self, request: Request, *, has_waited: bool = False) -> None:
        """Queue a request; ``has_waited``: the queue's limit was applied to it before. Raises
        RequestError or QueueFullError like the live scheduler."""
        self._scheduler.check_request(request)
        self._scheduler.admit(request, num_let_in=0 if has_waited else 1)
        self._turns.add(request)

    def launch(self, now_s: float, horizon_s: float) -> None:
        """Put steps in flight that can start now.

        Before ``horizon_s`` nothing reaches this replica from outside, so steps up to there may
        be taken in one stretch.
        """
        self._turns.launch(now_s, horizon_s)

    def commit(self, now_s: float) -> list[int]:
        """Take in the oldest step (or stretch) in flight; returns the requests that ended with
        it."""
        return self._turns.commit(now_s)

    def wind_down(self) -> None:
        """Start nothing more: what is in flight ends, and nothing follows it."""
        self.is_winding_down = True
        self._turns.wind_down()

    def adopt(self, sequences: list[Sequence]) -> None:
        """Queue sequences of another replica with their tokens so far."""
        self._scheduler.adopt(sequences)

    def release(self) -> list[Sequence]:
        """Take every sequence out, for other replicas to adopt; nothing may be in flight."""
        assert not self.is_in_flight, "steps in flight end first"
        self._turns.let_all_in()
        return self._scheduler.release()

    def set_hot(self, setup: ReplicaSetup) -> None:
        """Obey other settings from the next step on."""
        self._scheduler.set_hot(
            caps=setup.settings.caps, chooser=setup.chooser, order=setup.settings.order
        )

    def finish_counts(self) -> RunCounts:
        """The counts, with what the scheduler has counted."""
        counts, counted = self._steps.counts, self._scheduler.counts
        counts.preemptions = counted.preemptions
        counts.prefix_queries = counted.prefix_queries
        counts.prefix_hits = counted.prefix_hits
        return counts


def _turns(setup: ReplicaSetup, steps: Steps) -> Turns:
    match setup.engine.look_ahead:
        case LookAhead.NONE:
            return AtEnd(steps, stops_at_ends=setup.stops_at_ends)
        case LookAhead.AT_START:
            wait = setup.engine.prompt_wait
            return AtStart(steps, stops_at_ends=setup.stops_at_ends, wait=wait)
        case LookAhead.BEFORE_END:
            return BeforeEnd(steps)
        case _ as other:
            assert_never(other)
