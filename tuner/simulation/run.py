"""One pass of a workload over a simulated engine, in order of virtual time."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace

from engine.admission import AdmissionRule
from engine.spec.errors import QueueFullError, RequestError
from engine.spec.measurement import Distribution, Fidelity, Measurement, Outcome, RequestTiming
from engine.spec.request import Request
from engine.spec.settings import Settings
from tuner.simulation.changes import Changes
from tuner.simulation.log import AppliedChange, DeviceSpell, PlanSpell, RunCounts, Segment, TokenLog
from tuner.simulation.register import Register
from tuner.simulation.replica import SimulatedReplica
from tuner.simulation.replicas import Replicas
from tuner.simulation.requests import NEVER_S, RequestSource, Sent
from tuner.simulation.setup import SimulatedEngine
from tuner.simulation.steering import Steering
from tuner.workload.workload import Workload

# Called now and then with the virtual seconds so far, requests ended, and requests in all.
OnProgress = Callable[[float, int, int], None]
PROGRESS_REQUESTS = 50


def no_progress(now_s: float, num_ended: int, num_requests: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, kw_only=True)
class SimulationResult:
    """What a simulated run yields: a measurement like a live one's, and where steps went.

    ``step_tokens`` are the sizes of its steps, ascending; ``spells`` the plans it had, one after
    the other; ``changes`` what a steering changed; ``device_spells`` which replica had how many
    devices, from when to when; ``turned_away`` requests that were turned away for want of room, by
    their place in the measurement.
    """

    measurement: Measurement
    counts: RunCounts
    segments: Sequence[Segment]
    step_tokens: tuple[int, ...]
    spells: tuple[PlanSpell, ...]
    changes: tuple[AppliedChange, ...] = ()
    device_spells: tuple[DeviceSpell, ...] = ()
    turned_away: frozenset[int] = frozenset()

    @property
    def admitted(self) -> Measurement:
        """The measurement of those requests alone that were not turned away."""
        timings = self.measurement.timings
        kept = tuple(t for number, t in enumerate(timings) if number not in self.turned_away)
        return replace(self.measurement, timings=kept)

    def device_seconds(self, until_s: float) -> float:
        """Device seconds up to ``until_s``; to its last step's end where that was earlier."""
        return sum(spell.seconds_until(until_s) for spell in self.device_spells)


class Run:
    """``workload`` on ``engine``, which starts with ``settings``; a steering may change them.

    Raises:
        PlanError, PolicyError, TunerError: as :func:`tuner.simulation.simulate.simulate`.
    """

    def __init__(
        self,
        engine: SimulatedEngine,
        settings: Settings,
        workload: Workload,
        *,
        seed: int,
        steering: Steering | None,
        on_progress: OnProgress,
    ) -> None:
        caps, is_steered = settings.caps, steering is not None
        self._workload = workload
        self._is_closed = workload.closed is not None
        self._front_end = engine.front_end
        self._on_progress = on_progress
        self._source = RequestSource(
            workload,
            front_end=engine.front_end,
            seed=seed,
            has_content=engine.keeps_prefixes,
            vocab_size=engine.model.vocab_size,
        )
        self._log = TokenLog(workload.output_tokens)
        self._register = Register(workload, self._log)
        self._admission = AdmissionRule()
        # Of those refused the ones that could have run.
        self._turned_away: set[int] = set()
        self._replicas = Replicas(
            engine,
            settings,
            envelope=engine.envelope_above(caps) if is_steered else caps,
            is_watched=is_steered or self._is_closed,
            log=self._log,
        )
        self._changes = Changes(
            steering,
            self._replicas,
            self._register,
            devices=engine.devices,
            model=engine.model,
        )

    def to_the_end(self) -> None:
        """Handle one event after the other until no request waits, runs or is still to come."""
        source, replicas, changes = self._source, self._replicas, self._changes
        while True:
            replica = replicas.next
            arrival_s, end_s, due_s = source.next_s, replica.next_event_s, changes.due_s
            now_s = min(arrival_s, end_s, due_s)
            if now_s == NEVER_S:
                return
            if changes.ask_s <= now_s:
                self._ask(changes.ask_s)
            elif now_s == due_s:
                self._go_on(now_s)
            elif now_s == arrival_s:
                self._admit_until(now_s)
                self._launch(now_s, None)
            else:
                self._finish_step(replica, now_s)

    def result(self) -> SimulationResult:
        """What was measured."""
        sent, over = self._source.num_sent, self._register.num_over
        assert over == sent, f"{sent - over} of {sent} requests never ended"
        segments = tuple(self._replicas.segments)
        return SimulationResult(
            measurement=Measurement(
                fidelity=Fidelity.SIMULATED,
                # Clients get tokens ``answer_s`` after their steps.
                timings=request_timings(
                    self._workload,
                    self._source.sent_s[:sent],
                    self._log.token_s(self._front_end.answer_s),
                    self._register.refused,
                ),
                driver_lag_ms=Distribution.of([0.0]),
            ),
            counts=self._replicas.finish_counts(),
            segments=segments,
            step_tokens=tuple(sorted({segment.shape.num_tokens for segment in segments})),
            spells=self._changes.spells(self._replicas.end_s),
            changes=tuple(self._changes.applied),
            device_spells=self._replicas.device_spells(self._replicas.end_s),
            turned_away=frozenset(self._turned_away),
        )

    # -- events ----------------------------------------------------------------------------------

    def _ask(self, now_s: float) -> None:
        """Let the steering change something."""
        if self._changes.ask(now_s):
            self._launch(now_s, None)

    def _go_on(self, now_s: float) -> None:
        """Ranks have come or gone: let in the requests that waited at the door, where the queue's
        limit was applied to them.
        """
        for sent in self._changes.go_on(now_s):
            self._route(sent, now_s)
        self._launch(now_s, None)

    def _admit_until(self, now_s: float) -> None:
        """Let every request in that is seen by ``now_s``, or hold it while ranks are away."""
        while self._source.next_s <= now_s:
            sent = self._source.take()
            if not sent.is_in:
                replica, seconds = self._replicas.least_loaded, self._source.seconds_in(sent)
                self._source.come_in(sent, replica.take_in(sent.sent_s, seconds))
                continue
            self._register.come(sent)
            request = self._source.request(sent)
            try:
                self._admission.follow(self._replicas.settings.admission, sent.seen_s)
                self._admission.check(request, sent.seen_s)
                self._let_in(sent, request)
            except QueueFullError:
                self._turned_away.add(sent.number)
                self._refuse(sent, sent.seen_s)
            except RequestError:
                self._refuse(sent, sent.seen_s)
            else:
                self._admission.take(request)

    def _let_in(self, sent: Sent, request: Request) -> None:
        """Give it to a replica, or let it wait at the door while ranks are away.

        Raises:
            RequestError, QueueFullError: a live engine would refuse it.
        """
        if not self._changes.is_away:
            self._replicas.add(request)
        elif self._changes.is_door_full:
            raise QueueFullError("as many requests are held as may wait")
        else:
            self._changes.hold(sent)

    def _launch(self, now_s: float, committed: SimulatedReplica | None) -> None:
        """Start steps on ``committed`` and on replicas that were idle, unless a reshape has begun.

        A live loop that waits for a step looks at its queue again when the step ends.
        """
        if self._changes.is_away:
            self._changes.wind_down(now_s)
            return
        for replica in self._replicas.all:
            if replica.is_winding_down:
                continue
            if replica is committed or not replica.is_in_flight:
                replica.launch(now_s, self._horizon_s(replica))

    def _finish_step(self, replica: SimulatedReplica, now_s: float) -> None:
        """Commit the oldest step of ``replica`` and go on."""
        ended = replica.commit(now_s)
        self._admit_until(now_s)
        # Follow-ups come after admission, because a client reads its answer before it asks again.
        for number in ended:
            self._register.end(number, now_s)
            self._follow_up(max(now_s, self._log.last_s(number)))
        if self._changes.is_passing:
            self._changes.go_on(now_s)
        self._launch(now_s, replica)

    # -- parts -----------------------------------------------------------------------------------

    def _route(self, sent: Sent, now_s: float) -> None:
        """Give a request that was held to the least loaded replica."""
        try:
            self._replicas.least_loaded.add(self._source.request(sent), has_waited=True)
        except (RequestError, QueueFullError):
            self._refuse(sent, now_s)

    def _refuse(self, sent: Sent, now_s: float) -> None:
        self._register.refuse(sent)
        self._follow_up(now_s)

    def _follow_up(self, now_s: float) -> None:
        """A request is over at ``now_s``: let its client send the next one, and report progress."""
        self._source.follow_up(now_s)
        num_over = self._register.num_over
        if num_over % PROGRESS_REQUESTS == 0:
            self._on_progress(now_s, num_over, len(self._workload))

    def _horizon_s(self, replica: SimulatedReplica) -> float:
        """Until when nothing outside ``replica`` can reach it."""
        next_s = min(self._source.next_s, self._changes.ask_s)
        if not self._is_closed:
            return next_s
        others = (r.next_event_s for r in self._replicas.all if r is not replica)
        return min(next_s, *others, NEVER_S)


def request_timings(
    workload: Workload,
    sent_s: Sequence[float],
    token_s: Sequence[tuple[float, ...]],
    refused: Set[int],
) -> tuple[RequestTiming, ...]:
    """Timings of the requests that were sent, by their numbers."""
    return tuple(
        RequestTiming(
            scheduled_s=at_s,
            sent_s=at_s,
            token_s=stamps,
            prompt_tokens=arrival.input_tokens,
            outcome=Outcome.ERRORED if number in refused else Outcome.COMPLETED,
        )
        for number, (at_s, stamps, arrival) in enumerate(
            zip(sent_s, token_s, workload.arrivals, strict=False)
        )
    )
