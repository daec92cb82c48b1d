"""A stand-in for the simulated engine: replicas are servers of one queue, a request takes as long
as its prompt. Some times as quick, so that rules can be tried on more loads; what it leaves out
are steps, KV room and TPOT.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from benchmarks.capacity_loads import SAMPLE
from engine.spec.measurement import Distribution, Fidelity, Measurement, RequestTiming
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from policies.attainment import judge
from policies.capacity_table import CapacityTable, CarriedRate
from policies.sla import Sla
from tuner.capacity.table import table_of
from tuner.simulation.log import DeviceSpell
from tuner.simulation.steering import SettingsChange, Steering
from tuner.workload.parse import parse_workload
from tuner.workload.stretch import stretch
from tuner.workload.workload import Workload

# A prompt token keeps a replica busy for so long: with it replicas that hold still attain about
# what the simulated ones do (Llama-3.1-70B in fp8 on an H200).
TOKEN_S = 0.95 / 4358
# An answer goes on for that long after its first token, and keeps nobody busy.
ANSWER_S = 4.0
# What is carried is told to about 1 %, from so many requests.
HALVINGS = 7
LEAST_REQUESTS = 1500


@dataclass(frozen=True, kw_only=True)
class QueueChange:
    """Another number of replicas, asked for at ``at_s`` and in force from ``in_force_s``."""

    at_s: float
    in_force_s: float
    change: SettingsChange


@dataclass(kw_only=True)
class QueueEngine:
    """What a steering sees (``tuner.simulation.steering.RunView``) and what a run tells."""

    settings: Settings
    workload: Workload
    steering: Steering | None
    token_s: float = TOKEN_S
    changes: list[QueueChange] = field(default_factory=list)
    device_spells: list[DeviceSpell] = field(default_factory=list)
    num_refused: int = 0
    _timings: list[RequestTiming] = field(default_factory=list)
    _ends: list[tuple[float, int, RequestTiming]] = field(default_factory=list)
    _ended_s: list[float] = field(default_factory=list)
    _waiting: deque[int] = field(default_factory=deque)
    _events: list[tuple[float, int, Callable[[float], None]]] = field(default_factory=list)
    _order: int = 0
    _busy: int = 0
    _inside: int = 0
    _starting: int = 0
    _serving: int = 0
    _under_way: tuple[float, SettingsChange] | None = None
    _spell_s: float = 0.0

    # -- what the steering sees ------------------------------------------------------------------

    @property
    def held_plan(self) -> ParallelPlan:
        return self.settings.plan

    @property
    def envelope(self) -> Caps:
        return self.settings.caps

    @property
    def is_reshaping(self) -> bool:
        return self._under_way is not None

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return self._inside - len(self._waiting)

    @property
    def kv_usage(self) -> tuple[float, ...]:
        return (0.0,) * self._serving

    def timings_since(self, since_s: float) -> Sequence[RequestTiming]:
        return self._timings[bisect_left(self._ended_s, since_s) :]

    # -- the run ---------------------------------------------------------------------------------

    @property
    def measurement(self) -> Measurement:
        return Measurement(
            fidelity=Fidelity.SIMULATED,
            timings=tuple(self._timings),
            driver_lag_ms=Distribution.of(()),
        )

    def device_seconds(self, until_s: float) -> float:
        """Device seconds up to ``until_s``."""
        return sum(spell.seconds_until(until_s) for spell in self.device_spells)

    def to_the_end(self) -> None:
        """Serve every request, one event after the other."""
        self._serving = self.settings.plan.dp
        arrivals = [a.arrival_s for a in self.workload.arrivals]
        nth, ask_s = 0, math.inf if self.steering is None else self.steering.first_s()
        while nth < len(arrivals) or self._inside:
            arrival_s = arrivals[nth] if nth < len(arrivals) else math.inf
            event_s = self._events[0][0] if self._events else math.inf
            now_s = min(arrival_s, event_s, ask_s)
            if ask_s == now_s:
                ask_s = self._ask(now_s)
            elif event_s == now_s:
                heapq.heappop(self._events)[2](now_s)
            else:
                self._inside += 1
                self._waiting.append(nth)
                self._start(now_s)
                nth += 1
        self._count(math.inf)

    def _at(self, when_s: float, what: Callable[[float], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (when_s, self._order, what))

    def _start(self, now_s: float) -> None:
        while self._waiting and self._busy < self._serving:
            nth = self._waiting.popleft()
            self._busy += 1
            first_s = now_s + self.token_s * self.workload.arrivals[nth].input_tokens
            self._at(first_s, self._free)
            self._at(first_s + ANSWER_S, partial(self._end, nth))

    def _free(self, now_s: float) -> None:
        self._count(now_s)
        self._busy -= 1
        self._start(now_s)
        if self._under_way is not None and not self._starting and self._busy <= self._serving:
            self._put_in_force(now_s)

    def _end(self, nth: int, end_s: float) -> None:
        arrival = self.workload.arrivals[nth]
        self._inside -= 1
        self._ended_s.append(end_s)
        self._timings.append(
            RequestTiming(
                scheduled_s=arrival.arrival_s,
                sent_s=arrival.arrival_s,
                token_s=(end_s - ANSWER_S, end_s - ANSWER_S + 0.03),
                prompt_tokens=arrival.input_tokens,
            )
        )

    # -- changes ---------------------------------------------------------------------------------

    def _ask(self, now_s: float) -> float:
        assert self.steering is not None, "somebody is there to ask"
        turn = self.steering.ask(now_s, self)
        if turn.change is not None and self._under_way is None:
            self._begin(turn.change, now_s)
        return turn.next_s

    def _begin(self, change: SettingsChange, now_s: float) -> None:
        if not change.moves_ranks:
            self.settings = change.settings
            return
        self._count(now_s)
        self._under_way = (now_s, change)
        more = change.settings.plan.dp - self._serving
        if more > 0:
            self._starting = more
            self._at(now_s + change.cost_s, self._join)
        else:
            self._serving += more
            if self._busy <= self._serving:
                self._put_in_force(now_s)

    def _join(self, now_s: float) -> None:
        self._count(now_s)
        self._serving += self._starting
        self._starting = 0
        self._put_in_force(now_s)
        self._start(now_s)

    def _put_in_force(self, now_s: float) -> None:
        assert self._under_way is not None, "a change is under way"
        at_s, change = self._under_way
        self._under_way = None
        self.settings = replace(self.settings, plan=change.settings.plan)
        self.changes.append(QueueChange(at_s=at_s, in_force_s=now_s, change=change))

    def _count(self, now_s: float) -> None:
        """Keep how many devices were in use until now: those that finish what they have, too."""
        devices = max(self._serving, self._busy) + self._starting
        if now_s > self._spell_s:
            self.device_spells.append(
                DeviceSpell(num_devices=devices, from_s=self._spell_s, to_s=now_s)
            )
        self._spell_s = now_s


def queue_table(sla: Sla, *, most: int, caps: Caps, interval: float) -> CapacityTable:
    """What 1 to ``most`` replicas carry of the sample's requests, where these take longer by
    ``interval`` (logs): as the tuner's tables have it."""
    sample = parse_workload(SAMPLE, seed=1)
    assert sample.rate_rps is not None, "it arrives over time"
    entries = []
    for replicas in range(1, most + 1):
        settings = Settings(plan=ParallelPlan(dp=replicas), caps=caps)
        low, high = 0.0, 2.0 * replicas / sample.rate_rps
        for _ in range(HALVINGS):
            factor = (low + high) / 2
            load = stretch(sample, factor, seed=1, least=LEAST_REQUESTS)
            token_s = TOKEN_S * math.exp(interval)
            engine = QueueEngine(settings=settings, workload=load, steering=None, token_s=token_s)
            engine.to_the_end()
            is_met = judge(sla, engine.measurement).is_met
            low, high = (factor, high) if is_met else (low, factor)
        rate = max(low, 1e-3) * sample.rate_rps
        entries.append(CarriedRate(settings=settings, rate_rps=rate, low_rps=rate, high_rps=rate))
    return table_of(sample, sla, entries)
