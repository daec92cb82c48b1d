"""Simulation: the engine's own scheduler, a step timer and a virtual clock.

Imports no torch, scikit-learn or pandas. The loop is the live engine's: fill the pipeline with
steps, wait for the oldest, take its tokens in, repeat. Stretches in which only lengths change are
committed in bulk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.config import Caps, ModelConfig
from engine.errors import QueueFullError, RequestError
from engine.executors.protocol import StepTimer
from engine.measurement import Distribution, Fidelity, Measurement, Outcome, RequestTiming
from engine.plan import ParallelPlan, check_plan
from engine.policy import Order
from engine.shift import ModeChooser
from tuner.arrivals import Workload
from tuner.front_end import NO_FRONT_END, FrontEnd
from tuner.run_log import RunCounts, Segment, TokenLog
from tuner.simulated_replica import Replica, ReplicaSetup
from tuner.simulated_requests import NEVER_S, RequestSource, Sent

# Called now and then with the virtual seconds so far, requests ended, and requests in all.
OnProgress = Callable[[float, int, int], None]
PROGRESS_REQUESTS = 50


def no_progress(now_s: float, num_ended: int, num_requests: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, kw_only=True)
class SimulationResult:
    """What a simulated run yields: a measurement like a live one's, and where steps went."""

    measurement: Measurement
    counts: RunCounts
    segments: tuple[Segment, ...]


def simulate(
    *,
    model: ModelConfig,
    plan: ParallelPlan,
    threshold_tokens: int,
    caps: Caps,
    workload: Workload,
    timer: StepTimer,
    num_kv_blocks: int,
    block_size: int = 16,
    max_model_len: int | None = None,
    mode: str = "auto",
    order: Order = Order.FCFS,
    seed: int = 0,
    front_end: FrontEnd = NO_FRONT_END,
    keeps_prefixes: bool = False,
    on_progress: OnProgress = no_progress,
) -> SimulationResult:
    """Run ``workload`` on a simulated engine; same arguments, same answer.

    ``timer`` gives the step times of one replica; ``num_kv_blocks`` is per rank. With
    ``keeps_prefixes`` the engine's prefix cache is on, and prompts are those the load driver
    sends with ``seed``; else only their lengths count.

    Raises:
        PlanError: the model cannot run under the plan.
        PolicyError: a mode or threshold the plan does not have.
    """
    check_plan(plan, model)
    setup = ReplicaSetup(
        caps=caps,
        envelope=caps,
        chooser=ModeChooser(plan=plan, threshold_tokens=threshold_tokens, pin=mode),
        timer=timer,
        num_kv_blocks=num_kv_blocks,
        block_size=block_size,
        max_model_len=max_model_len or model.max_positions,
        depth=plan.pp,
        order=order,
        keeps_prefixes=keeps_prefixes,
        stops_at_ends=plan.dp > 1 or workload.closed is not None or caps.max_queue is not None,
    )
    source = RequestSource(
        workload,
        front_end=front_end,
        seed=seed,
        has_content=keeps_prefixes,
        vocab_size=model.vocab_size,
    )
    run = _Run(workload, source, [setup] * plan.dp, on_progress)
    run.to_the_end()
    return run.result(front_end.answer_s)


class _Run:
    """One pass of a workload over the replicas, in order of virtual time."""

    def __init__(
        self,
        workload: Workload,
        source: RequestSource,
        setups: list[ReplicaSetup],
        on_progress: OnProgress,
    ) -> None:
        self._workload = workload
        self._source = source
        self._is_closed = workload.closed is not None
        self._log = TokenLog(workload.output_tokens)
        self._segments: list[Segment] = []
        self._replicas = [
            Replica(setup, number=number, log=self._log, segments=self._segments)
            for number, setup in enumerate(setups)
        ]
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
            counts=RunCounts.total(r.finish_counts() for r in self._replicas),
            segments=tuple(self._segments),
        )

    def _next_replica(self) -> Replica:
        """The replica whose oldest step ends first."""
        replicas = self._replicas
        return replicas[0] if len(replicas) == 1 else min(replicas, key=_event_s)

    def _admit_until(self, now_s: float) -> None:
        """Route every request that is seen by ``now_s`` to the least loaded replica."""
        while self._source.next_s <= now_s:
            self._route(self._source.take())

    def _route(self, sent: Sent) -> None:
        replica = min(self._replicas, key=_load)
        try:
            replica.add(self._source.request(sent))
        except (RequestError, QueueFullError):
            self._refused.add(sent.number)
            self._end(sent.seen_s)

    def _end(self, now_s: float) -> None:
        """A request is over."""
        self._num_ended += 1
        self._source.follow_up(now_s)
        if self._num_ended % PROGRESS_REQUESTS == 0:
            self._on_progress(now_s, self._num_ended, len(self._workload))

    def _finish_step(self, replica: Replica) -> None:
        """Commit the oldest step of ``replica`` and go on."""
        now_s = replica.next_event_s
        ended = replica.commit()
        self._admit_until(now_s)
        # A client reads its answer before it asks again: it misses the step that starts now.
        for _ in ended:
            self._end(now_s)
        self._launch(now_s, replica)

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


def _event_s(replica: Replica) -> float:
    return replica.next_event_s


def _load(replica: Replica) -> int:
    return replica.load_tokens
