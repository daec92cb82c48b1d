"""A simulated run in which settings change: hot ones at the next step, plans by a reshape.

A reshape goes as in the live engine: new requests are held at the door, steps in flight end, the
ranks are away for the change's ``cost_s``, then every sequence is dealt to the new replicas with
its tokens so far (which they compute again), and the held requests follow in order.
"""

from __future__ import annotations

from collections.abc import Sequence as Listed
from dataclasses import dataclass, field
from typing import Protocol

from engine.policy.document import KnobClass
from engine.scheduler.table import Sequence
from engine.spec.errors import RequestError
from engine.spec.measurement import RequestTiming
from engine.spec.settings import Caps, Settings
from tuner.simulation.log import AppliedChange, PlanSpell, RunCounts
from tuner.simulation.replica import Replica
from tuner.simulation.requests import NEVER_S, RequestSource, Sent
from tuner.simulation.run import OnProgress, Run, load_tokens
from tuner.simulation.setup import ReplicaSetup
from tuner.simulation.steering import SettingsChange, Steering
from tuner.workload.workload import Workload


class Setups(Protocol):
    """What replicas run with, by settings."""

    @property
    def envelope(self) -> Caps: ...

    def of(self, settings: Settings) -> ReplicaSetup: ...


@dataclass(kw_only=True)
class _Reshape:
    """A reshape under way; ``stopped_s`` is None while steps in flight still run."""

    change: SettingsChange
    at_s: float
    stopped_s: float | None = None
    carried: list[Sequence] = field(default_factory=list)
    held: list[Sent] = field(default_factory=list)

    @property
    def opens_s(self) -> float:
        """When the new ranks are ready."""
        return NEVER_S if self.stopped_s is None else self.stopped_s + self.change.cost_s


class SteeredRun(Run):
    """A run whose steering sees it as a :class:`tuner.simulation.steering.RunView`.

    Raises:
        PolicyError: a change that a live engine would refuse.
    """

    def __init__(
        self,
        workload: Workload,
        source: RequestSource,
        settings: Settings,
        setups: Setups,
        on_progress: OnProgress,
        steering: Steering,
    ) -> None:
        super().__init__(workload, source, settings.plan, setups.of(settings), on_progress)
        self.settings = settings
        self.envelope = setups.envelope
        self._steering = steering
        self._setups = setups
        self._ask_s = steering.first_s()
        self._reshape: _Reshape | None = None
        self._applied: list[AppliedChange] = []
        self._seen_s: dict[int, float] = {}
        self._ended: list[tuple[float, int]] = []
        self._past_counts: list[RunCounts] = []

    # -- what the steering sees ----------------------------------------------------------------

    @property
    def is_reshaping(self) -> bool:
        return self._reshape is not None

    @property
    def num_running(self) -> int:
        # A stretch in flight has taken out already what ends with its last step.
        return len(self._seen_s) - len(self._ended) - self.num_waiting

    @property
    def num_waiting(self) -> int:
        away = len(self._reshape.carried) + len(self._reshape.held) if self._reshape else 0
        return away + sum(replica.num_waiting for replica in self._replicas)

    @property
    def kv_usage(self) -> tuple[float, ...]:
        return tuple(replica.kv_usage for replica in self._replicas)

    def timings_since(self, since_s: float) -> Listed[RequestTiming]:
        """Accepted requests that ended at ``since_s`` or later, in the order of their ends; their
        times are the engine's own, as heartbeats have them."""
        first = len(self._ended)
        while first and self._ended[first - 1][0] >= since_s:
            first -= 1
        return [self._timing(number) for _, number in self._ended[first:]]

    # -- the loop ------------------------------------------------------------------------------

    def to_the_end(self) -> None:
        """Handle events, and among them the questions to the steering and the ends of reshapes."""
        while True:
            replica = self._next_replica()
            arrival_s = self._source.next_s
            opens_s = self._reshape.opens_s if self._reshape else NEVER_S
            event_s = min(arrival_s, replica.next_event_s, opens_s)
            if event_s == NEVER_S:
                return
            if self._ask_s <= event_s:
                self._ask(self._ask_s)
            elif opens_s == event_s:
                self._open(opens_s)
            elif arrival_s == event_s:
                self._admit_until(arrival_s)
                self._launch(arrival_s, None)
            else:
                self._finish_step(replica)

    def _counts(self) -> list[RunCounts]:
        return self._past_counts + super()._counts()

    def _changes(self) -> list[AppliedChange]:
        return self._applied

    def _spells(self) -> tuple[PlanSpell, ...]:
        reshapes = [
            a
            for a in self._applied
            if a.change.knob_class is KnobClass.RESHAPE and not a.is_refused
        ]
        plans = [self._plan, *(a.change.settings.plan for a in reshapes)]
        end_s = max([self._end_s, *(a.in_force_s for a in reshapes)])
        edges = [0.0, *(a.stopped_s for a in reshapes), end_s]
        return tuple(
            PlanSpell(plan=plan, from_s=from_s, to_s=to_s)
            for plan, from_s, to_s in zip(plans, edges, edges[1:], strict=False)
        )

    def _route(self, sent: Sent) -> None:
        """Let a request in, or hold it while ranks are away."""
        self._seen_s[sent.number] = sent.seen_s
        if self._reshape is None:
            super()._route(sent)
            return
        limit, held = self.settings.caps.max_queue, self._reshape.held
        if limit is not None and len(held) >= limit:
            self._refuse(sent, sent.seen_s)
        else:
            held.append(sent)

    def _refuse(self, sent: Sent, now_s: float) -> None:
        del self._seen_s[sent.number]
        super()._refuse(sent, now_s)

    def _end_all(self, numbers: list[int], now_s: float) -> None:
        self._ended += [(now_s, number) for number in numbers]
        super()._end_all(numbers, now_s)

    def _launch(self, now_s: float, committed: Replica | None) -> None:
        """Start steps, or stop the replicas when the last step before a reshape has ended."""
        if self._reshape is None:
            super()._launch(now_s, committed)
        elif self._reshape.stopped_s is None:
            for replica in self._replicas:
                replica.wind_down()
            if not any(replica.is_in_flight for replica in self._replicas):
                self._stop(self._reshape, now_s)

    def _horizon_s(self, replica: Replica) -> float:
        return min(super()._horizon_s(replica), self._ask_s)

    # -- changes -------------------------------------------------------------------------------

    def _ask(self, now_s: float) -> None:
        turn = self._steering.ask(now_s, self)
        assert turn.next_s > now_s, "a steering lets time pass"
        self._ask_s = turn.next_s
        if turn.change is None:
            return
        assert self._reshape is None, "no change is begun while ranks are away"
        if turn.change.knob_class is KnobClass.RESHAPE:
            if self._fits(turn.change):
                self._reshape = _Reshape(change=turn.change, at_s=now_s)
            else:
                self._applied.append(AppliedChange.refused(turn.change, now_s))
                return
        else:
            self._set_hot(turn.change, now_s)
        self._launch(now_s, None)

    def _set_hot(self, change: SettingsChange, now_s: float) -> None:
        """Obey from the next step on."""
        self.settings = change.settings
        setup = self._setups.of(change.settings)
        for replica in self._replicas:
            replica.set_hot(caps=setup.caps, chooser=setup.chooser, order=setup.order)
        self._applied.append(
            AppliedChange(at_s=now_s, stopped_s=now_s, in_force_s=now_s, change=change)
        )

    def _stop(self, reshape: _Reshape, now_s: float) -> None:
        """Steps in flight have ended: take every sequence out; the ranks are away from now on."""
        reshape.stopped_s = now_s
        for replica in self._replicas:
            reshape.carried += replica.release()

    def _fits(self, change: SettingsChange) -> bool:
        """Whether every request in progress may go on under the new plan: a live engine refuses
        the change otherwise, and goes on."""
        setup = self._setups.of(change.settings)
        most = min(setup.max_model_len, setup.num_kv_blocks * setup.block_size)
        in_progress = self._seen_s.keys() - {number for _, number in self._ended}
        return all(self._max_len(number) <= most for number in in_progress)

    def _max_len(self, number: int) -> int:
        arrival = self._workload.arrivals[number]
        return arrival.input_tokens + arrival.output_tokens

    def _open(self, now_s: float) -> None:
        """The new ranks are ready: deal the sequences, let held requests in."""
        reshape = self._reshape
        assert reshape is not None, "only a reshape opens"
        assert reshape.stopped_s is not None, "the old ranks have stopped"
        self._past_counts += super()._counts()
        self.settings = reshape.change.settings
        count = self.settings.plan.dp
        self._replicas = self._make_replicas(self._setups.of(self.settings), count, ready_s=now_s)
        for nth, replica in enumerate(self._replicas):
            replica.adopt(reshape.carried[nth::count])
        self._reshape = None
        for sent in reshape.held:
            self._let_in(sent, now_s)
        self._applied.append(
            AppliedChange(
                at_s=reshape.at_s,
                stopped_s=reshape.stopped_s,
                in_force_s=now_s,
                change=reshape.change,
                num_carried=len(reshape.carried),
            )
        )
        self._launch(now_s, None)

    def _let_in(self, sent: Sent, now_s: float) -> None:
        """Route a request that was held, and so was held to the queue's limit already."""
        replica = min(self._replicas, key=load_tokens)
        try:
            replica.add(self._source.request(sent), is_admitted=True)
        except RequestError:
            self._refuse(sent, now_s)

    def _timing(self, number: int) -> RequestTiming:
        return RequestTiming(
            scheduled_s=self._seen_s[number],
            sent_s=self._seen_s[number],
            token_s=self._log.stamps(number),
            prompt_tokens=self._workload.arrivals[number].input_tokens,
        )
