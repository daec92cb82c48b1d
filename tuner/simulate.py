"""Simulation: the engine's own scheduler, a step timer and a virtual clock.

Imports no torch, scikit-learn or pandas. The loop is the live engine's: fill the pipeline with
steps, wait for the oldest, take its tokens in, repeat. Stretches in which only lengths change are
committed in bulk.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from engine.config import Caps, ModelConfig
from engine.errors import QueueFullError, RequestError
from engine.executors.protocol import StepTimer
from engine.measurement import Distribution, Fidelity, Measurement, Outcome, RequestTiming
from engine.plan import ParallelPlan, check_plan
from engine.policy import Order
from engine.request import Request, SamplingParams
from engine.shift import ModeChooser
from tuner.arrivals import Arrival, ClosedLoop, Workload
from tuner.front_end import NO_FRONT_END, FrontEnd
from tuner.simulated_replica import Replica, RunCounts


# Called now and then with the virtual seconds so far, requests ended, and requests in all.
OnProgress = Callable[[float, int, int], None]


def no_progress(now_s: float, num_ended: int, num_requests: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, kw_only=True)
class SimulationResult:
    """What a simulated run yields: a measurement like a live one's, and where steps went."""

    measurement: Measurement
    counts: RunCounts


@dataclass
class _Life:
    """One request while it is simulated."""

    scheduled_s: float
    prompt_tokens: int
    token_s: list[float] = field(default_factory=list)
    outcome: Outcome = Outcome.COMPLETED

    @property
    def timing(self) -> RequestTiming:
        return RequestTiming(
            scheduled_s=self.scheduled_s,
            sent_s=self.scheduled_s,
            token_s=tuple(self.token_s),
            prompt_tokens=self.prompt_tokens,
            outcome=self.outcome,
        )


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

    ``timer`` gives the step times of one replica; ``num_kv_blocks`` is per rank. ``seed`` stands
    for content, which has no effect on time here: lengths are the workload's.

    Raises:
        PlanError: the model cannot run under the plan.
        PolicyError: a mode or threshold the plan does not have.
    """
    check_plan(plan, model)
    replicas = [
        Replica(
            caps=caps,
            chooser=ModeChooser(plan=plan, threshold_tokens=threshold_tokens, pin=mode),
            timer=timer,
            num_kv_blocks=num_kv_blocks,
            block_size=block_size,
            max_model_len=max_model_len or model.max_positions,
            depth=plan.pp,
            order=order,
        )
        for _ in range(plan.dp)
    ]
    run = _Run(replicas, workload, seed)
    run.to_the_end()
    return SimulationResult(
        measurement=run.measurement(), counts=RunCounts.total(r.counts for r in replicas)
    )


class _Run:
    """One pass of a workload over the replicas, in order of virtual time."""

    def __init__(self, replicas: list[Replica], workload: Workload, seed: int) -> None:
        self._replicas = replicas
        self._lives: dict[str, _Life] = {}
        self._arrivals: list[tuple[float, int, Arrival]] = []
        self._backlog: list[Arrival] = []
        self._closed: ClosedLoop | None = workload.closed
        self._sampling_seed = seed
        self._prompts: dict[int, tuple[int, ...]] = {}
        if self._closed is None:
            for arrival in workload.arrivals:
                self._push(arrival.arrival_s, arrival)
        else:
            first, rest = _split(workload.arrivals, self._closed.concurrency)
            self._backlog = rest[::-1]
            for arrival in first:
                self._push(0.0, arrival)

    def to_the_end(self) -> None:
        """Handle events until no request waits, runs or is still to come."""
        while True:
            replica = min(self._replicas, key=lambda r: r.next_event_s)
            arrival_s = self._next_arrival_s
            if arrival_s == replica.next_event_s == float("inf"):
                return
            if arrival_s <= replica.next_event_s:
                self._admit_until(arrival_s)
                self._launch(arrival_s, None)
            else:
                self._finish_step(replica)

    def measurement(self) -> Measurement:
        return Measurement(
            fidelity=Fidelity.SIMULATED,
            timings=tuple(life.timing for life in self._lives.values()),
            driver_lag_ms=Distribution.of([0.0]),
        )

    @property
    def _next_arrival_s(self) -> float:
        return self._arrivals[0][0] if self._arrivals else float("inf")

    def _push(self, when_s: float, arrival: Arrival) -> None:
        heapq.heappush(self._arrivals, (when_s, len(self._lives) + len(self._arrivals), arrival))

    def _admit_until(self, now_s: float) -> None:
        """Route every request that has arrived by ``now_s`` to the least loaded replica."""
        while self._arrivals and self._arrivals[0][0] <= now_s:
            arrived_s, number, arrival = heapq.heappop(self._arrivals)
            self._route(arrived_s, number, arrival)

    def _route(self, arrived_s: float, number: int, arrival: Arrival) -> None:
        request_id = str(number)
        life = _Life(scheduled_s=arrived_s, prompt_tokens=arrival.input_tokens)
        self._lives[request_id] = life
        replica = min(self._replicas, key=lambda r: r.load_tokens)
        try:
            replica.add(self._request(request_id, arrived_s, arrival))
        except (RequestError, QueueFullError):
            life.outcome = Outcome.ERRORED
            self._follow_up(arrived_s)

    def _request(self, request_id: str, arrived_s: float, arrival: Arrival) -> Request:
        length = arrival.input_tokens
        prompt = self._prompts.setdefault(length, (0,) * length)
        sampling = SamplingParams(
            max_tokens=arrival.output_tokens, ignore_eos=True, seed=self._sampling_seed
        )
        return Request(
            request_id=request_id, prompt_ids=prompt, sampling=sampling, arrival_s=arrived_s
        )

    def _follow_up(self, now_s: float) -> None:
        """In a closed loop, the end of a request sends the next one."""
        limit_s = self._closed.limit_s if self._closed else None
        if self._backlog and (limit_s is None or now_s < limit_s):
            self._push(now_s, self._backlog.pop())

    def _finish_step(self, replica: Replica) -> None:
        """Commit the oldest step of ``replica``, stamp its tokens and go on."""
        now_s = replica.next_event_s
        done = replica.commit()
        for request_id in done.request_ids:
            self._lives[request_id].token_s.extend(done.token_s)
        self._admit_until(now_s)
        # A client reads its answer before it asks again: it misses the step that starts now.
        for _ in done.finished:
            self._follow_up(now_s)
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
        if self._closed is None:
            return self._next_arrival_s
        others = (r.next_event_s for r in self._replicas if r is not replica)
        return min(self._next_arrival_s, *others, float("inf"))


def _split(arrivals: tuple[Arrival, ...], count: int) -> tuple[list[Arrival], list[Arrival]]:
    return list(arrivals[:count]), list(arrivals[count:])
