"""One pass of a workload over simulated replicas, in order of virtual time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.spec.errors import QueueFullError, RequestError
from engine.spec.measurement import Distribution, Fidelity, Measurement, Outcome, RequestTiming
from engine.spec.plan import ParallelPlan
from tuner.simulation.log import AppliedChange, PlanSpell, RunCounts, Segment, TokenLog
from tuner.simulation.queued_replica import QueuedReplica
from tuner.simulation.replica import Replica
from tuner.simulation.requests import NEVER_S, RequestSource, Sent
from tuner.simulation.setup import ReplicaSetup
from tuner.workload.workload import Workload

# Called now and then with the virtual seconds so far, requests ended, and requests in all.
OnProgress = Callable[[float, int, int], None]
PROGRESS_REQUESTS = 50


def no_progress(now_s: float, num_ended: int, num_requests: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, kw_only=True)
class SimulationResult:
    """What a simulated run yields: a measurement like a live one's, and where steps went.

    ``spells`` are the plans it had, one after the other; ``changes`` what a steering changed.
    """

    measurement: Measurement
    counts: RunCounts
    segments: tuple[Segment, ...]
    spells: tuple[PlanSpell, ...]
    changes: tuple[AppliedChange, ...] = ()


class Run:
    """A run under one plan, with the same settings from its start to its end."""

    def __init__(
        self,
        workload: Workload,
        source: RequestSource,
        plan: ParallelPlan,
        setup: ReplicaSetup,
        on_progress: OnProgress,
    ) -> None:
        self._workload = workload
        self._source = source
        self._plan = plan
        self._is_closed = workload.closed is not None
        self._log = TokenLog(workload.output_tokens)
        self._segments: list[Segment] = []
        self._replicas = self._make_replicas(setup, plan.dp)
        self._refused: set[int] = set()
        self._num_ended = 0
        self._on_progress = on_progress

    def to_the_end(self) -> None:
        """Handle events until no request waits, runs or is still to come."""
        while True:
            replica = self._next_replica()
            arrival_s = self._source.next_s
            if arrival_s == replica.next_event_s == NEVER_S:
                return
            if arrival_s <= replica.next_event_s:
                self._admit_until(arrival_s)
                self._launch(arrival_s, None)
            else:
                self._finish_step(replica)

    def result(self, answer_s: float) -> SimulationResult:
        """What was measured; clients hold tokens ``answer_s`` after their steps."""
        sent, ended = self._source.num_sent, self._num_ended
        assert ended == sent, f"{sent - ended} of {sent} requests never ended"
        token_s = self._log.token_s(answer_s)
        sent_s = self._source.sent_s
        timings = tuple(
            RequestTiming(
                scheduled_s=sent_s[number],
                sent_s=sent_s[number],
                token_s=token_s[number],
                prompt_tokens=self._workload.arrivals[number].input_tokens,
                outcome=Outcome.ERRORED if number in self._refused else Outcome.COMPLETED,
            )
            for number in range(self._source.num_sent)
        )
        return SimulationResult(
            measurement=Measurement(
                fidelity=Fidelity.SIMULATED,
                timings=timings,
                driver_lag_ms=Distribution.of([0.0]),
            ),
            counts=RunCounts.total(self._counts()),
            segments=tuple(self._segments),
            spells=self._spells(),
            changes=tuple(self._changes()),
        )

    # -- what a steered run does otherwise -----------------------------------------------------

    def _counts(self) -> list[RunCounts]:
        return [replica.finish_counts() for replica in self._replicas]

    def _spells(self) -> tuple[PlanSpell, ...]:
        return (PlanSpell(plan=self._plan, from_s=0.0, to_s=self._end_s),)

    def _changes(self) -> list[AppliedChange]:
        return []

    def _route(self, sent: Sent) -> None:
        """Give a request to the least loaded replica."""
        replicas = self._replicas
        replica = replicas[0] if len(replicas) == 1 else min(replicas, key=load_tokens)
        try:
            replica.add(self._source.request(sent))
        except (RequestError, QueueFullError):
            self._refuse(sent, sent.seen_s)

    def _launch(self, now_s: float, committed: Replica | None) -> None:
        """Start steps on ``committed`` and on replicas that were idle.

        A live loop that waits for a step looks at its queue again when the step ends.
        """
        for replica in self._replicas:
            if replica is committed or not replica.is_in_flight:
                replica.launch(now_s, self._horizon_s(replica))

    def _horizon_s(self, replica: Replica) -> float:
        """Until when nothing outside ``replica`` can reach it."""
        next_s = self._source.next_s
        if not self._is_closed:
            return next_s
        others = (r.next_event_s for r in self._replicas if r is not replica)
        return min(next_s, *others, NEVER_S)

    def _end_all(self, numbers: list[int], now_s: float) -> None:
        """These requests have all their tokens."""
        for _ in numbers:
            self._end(now_s)

    # -- parts ---------------------------------------------------------------------------------

    def _end(self, now_s: float) -> None:
        """A request is over."""
        self._num_ended += 1
        self._source.follow_up(now_s)
        if self._num_ended % PROGRESS_REQUESTS == 0:
            self._on_progress(now_s, self._num_ended, len(self._workload))

    @property
    def _end_s(self) -> float:
        """When the last step so far ended."""
        return max((segment.end_s[-1] for segment in self._segments), default=0.0)

    def _make_replicas(
        self, setup: ReplicaSetup, count: int, *, ready_s: float = 0.0
    ) -> list[Replica]:
        kind = QueuedReplica if setup.queues_ahead else Replica
        return [
            kind(setup, number=number, log=self._log, segments=self._segments, ready_s=ready_s)
            for number in range(count)
        ]

    def _next_replica(self) -> Replica:
        """The replica whose oldest step ends first."""
        replicas = self._replicas
        return replicas[0] if len(replicas) == 1 else min(replicas, key=_event_s)

    def _admit_until(self, now_s: float) -> None:
        """Let every request in that is seen by ``now_s``."""
        while self._source.next_s <= now_s:
            self._route(self._source.take())

    def _refuse(self, sent: Sent, now_s: float) -> None:
        self._refused.add(sent.number)
        self._end(now_s)

    def _finish_step(self, replica: Replica) -> None:
        """Commit the oldest step of ``replica`` and go on."""
        now_s = replica.next_event_s
        ended = replica.commit()
        self._admit_until(now_s)
        # A client reads its answer before it asks again: it misses the step that starts now.
        self._end_all(ended, now_s)
        self._launch(now_s, replica)


def _event_s(replica: Replica) -> float:
    return replica.next_event_s


def load_tokens(replica: Replica) -> int:
    return replica.load_tokens
