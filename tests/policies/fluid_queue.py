"""A queue of fluid before one server, with the slow loop at its door: what is let in is served in
turn at a rate that the table may be wrong about."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np

from policies.capacity_loop import decide_capacity, is_due
from policies.capacity_state import CapacityMemory, CapacityState, Queue
from policies.capacity_table import CapacityTable, CarriedRate
from policies.capacity_watch import Look, watch
from policies.load_history import luck_of
from policies.sla import Sla
from tests.policies.capacity import MIX, ahead, settings_of

TICK_S, LOOK_S, URGENT_S, SLOW_S = 0.25, 5.0, 10.0, 180.0
# Fewer that ended say nothing.
LEAST_JUDGED = 20
# What may come at once after a pause, in seconds of the limit.
BURST_S = 2.0
START_S = 10_000.0


@dataclass(frozen=True, kw_only=True)
class Tick:
    """What happened in one: requests that came, those let in, and those of them that will meet the
    bound; all as of the moment they came."""

    at_s: float
    offered: float
    let_in: float
    met: float
    waiting: float
    limit_rps: float | None


@dataclass(kw_only=True)
class FluidQueue:
    """``offered_rps`` come to a server of ``served_rps``; the table says ``table_rps``. An answer
    ends ``answer_s`` after its first token, and the loop sees the last ``window_s``. With a
    ``seed`` it is no fluid: single requests come and are served as they happen to (Poisson).
    Without ``has_door`` all are let in, whatever the loop says."""

    offered_rps: float
    served_rps: float
    table_rps: float
    bound_s: float
    waiting: float = 0.0
    answer_s: float = 4.0
    window_s: float = 30.0
    seed: int | None = None
    has_door: bool = True
    ticks: list[Tick] = field(default_factory=list)
    _now_s: float = 0.0
    _limit_rps: float | None = None
    _bucket: float = 0.0
    _memory: CapacityMemory = field(default_factory=CapacityMemory)
    _line: deque[list[float]] = field(default_factory=deque)
    _first_tokens: deque[tuple[float, float, bool]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._rng = None if self.seed is None else np.random.default_rng(self.seed)
        sla = Sla.parse(f"p95_ttft_ms<={1e3 * self.bound_s:g},attainment>=0.9")
        self._entry = CarriedRate(
            settings=settings_of(1),
            rate_rps=self.table_rps,
            low_rps=self.table_rps,
            high_rps=self.table_rps,
            binding=sla.constraints[0],
        )
        self._table = CapacityTable(
            sla=sla, mean_input_tokens=MIX[0], mean_output_tokens=MIX[1], entries=(self._entry,)
        )
        if self.waiting:
            self._line.append([0.0, self.waiting])

    @property
    def longest(self) -> float:
        """The most that ever waited."""
        return max(tick.waiting for tick in self.ticks)

    def run(self, seconds: float) -> float:
        """Let so much time go by; until when."""
        until_s = self._now_s + seconds
        while self._now_s < until_s:
            self._tick()
            if self._now_s % LOOK_S == 0:
                self._look()
        return self._now_s

    def attainment(self, since_s: float) -> float:
        """Of those let in since then."""
        let_in = sum(t.let_in for t in self.ticks if t.at_s >= since_s)
        return sum(t.met for t in self.ticks if t.at_s >= since_s) / let_in

    def goodput_rps(self, since_s: float) -> float:
        """Requests a second that came in since then and meet the bound."""
        return sum(t.met for t in self.ticks if t.at_s >= since_s) / (self._now_s - since_s)

    @property
    def memory(self) -> CapacityMemory:
        """What the loop remembers."""
        return self._memory

    @property
    def plan(self) -> str:
        """That of its one entry, as text."""
        return str(self._entry.settings.plan)

    def met_share(self, since_s: float) -> float:
        """Of those that came since then, let in or not; those that will meet the bound."""
        offered = sum(t.offered for t in self.ticks if t.at_s >= since_s)
        return sum(t.met for t in self.ticks if t.at_s >= since_s) / offered

    def _tick(self) -> None:
        self._now_s += TICK_S
        offered = self._drawn(self.offered_rps * TICK_S)
        let_in = self._come_in(offered)
        wait_s = self.waiting / self.served_rps
        self.ticks.append(
            Tick(
                at_s=self._now_s,
                offered=offered,
                let_in=let_in,
                met=let_in if wait_s <= self.bound_s else 0.0,
                waiting=self.waiting,
                limit_rps=self._limit_rps,
            )
        )
        self._line.append([self._now_s, let_in])
        self._serve(self._drawn(self.served_rps * TICK_S))

    def _drawn(self, mean: float) -> float:
        return mean if self._rng is None else float(self._rng.poisson(mean))

    def _come_in(self, offered: float) -> float:
        if self._limit_rps is None or not self.has_door:
            return offered
        most = max(self._limit_rps * BURST_S, 0.0 if self._rng is None else 1.0)
        self._bucket = min(most, self._bucket + self._limit_rps * TICK_S)
        let_in = min(offered, self._bucket)
        if self._rng is not None:
            let_in = float(int(let_in))
        self._bucket -= let_in
        return let_in

    def _serve(self, room: float) -> None:
        while self._line and room > 0:
            came_s, amount = self._line[0]
            served = min(amount, room)
            room -= served
            is_met = self._now_s - came_s <= self.bound_s
            self._first_tokens.append((self._now_s, served, is_met))
            if served == amount:
                self._line.popleft()
            else:
                self._line[0][1] -= served
        self.waiting = sum(amount for _, amount in self._line)

    @property
    def _running(self) -> float:
        since_s = self._now_s - self.answer_s
        return sum(amount for at_s, amount, _ in self._first_tokens if at_s > since_s)

    def _ended(self, seconds: float) -> list[tuple[float, bool]]:
        """How many answers ended in the last ``seconds``, and whether they met the bound."""
        since_s = self._now_s - seconds - self.answer_s
        return [
            (amount, is_met)
            for at_s, amount, is_met in self._first_tokens
            if since_s < at_s <= self._now_s - self.answer_s
        ]

    def _observed_rps(self) -> float:
        """What came in the last window; from its first second on it has come as now."""
        newest = self.ticks[-round(self.window_s / TICK_S) :]
        return sum(tick.offered for tick in newest) / (len(newest) * TICK_S)

    def _look(self) -> None:
        ended = self._ended(self.window_s)
        finished = sum(amount for amount, _ in ended)
        attainment = None
        if finished >= LEAST_JUDGED:
            attainment = sum(amount for amount, is_met in ended if is_met) / finished
        queue = Queue(
            waiting=self.waiting,
            finished_rps=finished / self.window_s,
            running=self._running,
            window_s=self.window_s,
        )
        observed_rps = self._observed_rps()
        luck = luck_of(observed_rps * self.window_s)
        now_s = START_S + self._now_s
        look = Look(
            now_s=now_s,
            seconds=LOOK_S,
            requests=self.offered_rps * LOOK_S,
            ended=sum(amount for amount, _ in self._ended(LOOK_S)),
            queue=queue,
            observed_rps=observed_rps,
            observed_luck=luck,
        )
        state = CapacityState(
            table=self._table,
            now_s=now_s,
            current=self._entry,
            forecast=ahead(observed_rps),
            observed_rps=observed_rps,
            observed_luck=luck,
            is_sla_met=None if attainment is None else attainment >= 0.9,
            attainment=attainment,
            request_size=1.0,
            admitted_rps=self._limit_rps,
            queue=queue,
        )
        self._memory = watch(self._memory, look, self._entry, self._table, state.limits)
        is_urgent = state.is_sla_met is False or observed_rps > self.table_rps
        if is_due(self._memory, now_s, is_urgent=is_urgent, slow_s=SLOW_S, urgent_s=URGENT_S):
            decision = decide_capacity(replace(state, memory=self._memory))
            self._memory = decision.memory
            if self._limit_rps is None and decision.admission_rps is not None:
                self._bucket = BURST_S * decision.admission_rps
            self._limit_rps = decision.admission_rps
