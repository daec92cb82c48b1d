"""The slow loop at the wheel of a simulated run: the live windows, forecasts and decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.spec.inventory import Inventory, RankKind
from engine.spec.model import ModelConfig
from engine.transition.planning import first_slots
from policies.capacity_loop import decide_capacity, is_due, settings_after
from policies.capacity_state import (
    CapacityDecision,
    CapacityLimits,
    CapacityMemory,
    CapacityState,
    Queue,
    SwitchCost,
)
from policies.capacity_table import CapacityTable, CarriedRate
from policies.capacity_watch import Look, watch
from policies.decision import Action, LoadWindow
from policies.forecast import Forecast, choose, forecast
from policies.forecasters import Forecaster
from policies.load_history import SLOT_S, LoadHistory, LoadSlot, luck_of, rate_of
from policies.observation import Observation, TrafficWindow
from policies.switch_costs import StartSeconds, switch_costs
from tuner.simulation.seen_windows import SeenWindows
from tuner.simulation.steering import RunView, SettingsChange, Turn
from tuner.spec.errors import TunerError
from tuner.spec.forecasters import list_forecasters

# The control plane's defaults.
LOOK_S = 5.0
SLOW_S = 180.0
URGENT_S = 10.0
WINDOW_S = 30.0
# Slots that a forecast looks ahead: until the next turn, plus the start of ranks.
HORIZON_SLOTS = 5
# The forecaster is chosen anew after this long.
CHOOSE_EVERY_S = 900.0
MIN_REQUESTS = 20


@dataclass(frozen=True, kw_only=True)
class CapacityTurn:
    """One decision of a run: when, what, and what was seen then."""

    now_s: float
    decision: CapacityDecision
    forecast: Forecast | None
    observation: Observation | None


class CapacitySteering:
    """Asks ``policies.capacity_loop.decide_capacity`` every ``SLOW_S``, and at once where a window
    misses the SLA or brings more than the entry in force carries.

    ``past``: the slots before the run, in requests of the table's mix.
    ``forecasters``: those to choose from (None: ours and those of extensions). ``turns`` has every
    decision of the last run.

    Raises:
        TunerError: a start plan that the table does not have, when the run asks.
    """

    def __init__(
        self,
        *,
        table: CapacityTable,
        model: ModelConfig,
        devices: int,
        start_s: StartSeconds,
        limits: CapacityLimits | None = None,
        past: LoadHistory | None = None,
        forecasters: Sequence[Forecaster] | None = None,
    ) -> None:
        self.turns: list[CapacityTurn] = []
        self._table = table
        self._model = model
        self._inventory = Inventory(kind=RankKind.PACED, max_ranks=devices)
        self._start_s = start_s
        self._limits = limits or CapacityLimits(max_devices=devices)
        self._past = past
        self._forecasters = forecasters
        self.first_s()

    @property
    def moves(self) -> list[CapacityTurn]:
        """The decisions that changed the entry in force."""
        return [turn for turn in self.turns if turn.decision.action is Action.MOVE]

    def first_s(self) -> float:
        """Forget the run before."""
        self.turns = []
        self._windows = SeenWindows(max(1, round(WINDOW_S / LOOK_S)))
        self._slots: list[LoadSlot] = []
        self._memory = CapacityMemory()
        self._chosen_s: float | None = None
        self._lengths = self._table.mix
        return LOOK_S

    def ask(self, now_s: float, view: RunView) -> Turn:
        since_s = self._windows.looked_s
        self._add_to_slot(since_s, self._windows.look(now_s, view))
        next_s = now_s + LOOK_S
        if view.is_reshaping:
            return Turn(change=None, next_s=next_s)
        seen = self._windows.observe(self._table.sla)
        current = self._entry(view)
        observed_rps = None if seen is None else self._rate_rps(seen.load)
        luck = luck_of(sum(window.num_arrived for window in self._windows))
        self._watch(current, view, observed_rps or 0.0, luck)
        is_met = attainment = None
        if seen is not None and seen.load.num_requests >= MIN_REQUESTS:
            is_met = seen.load.is_sla_met
            attainment = None if seen.report is None else seen.report.attainment
        is_urgent = is_met is False or (observed_rps or 0.0) > current.low_rps
        if not is_due(self._memory, now_s, is_urgent=is_urgent, slow_s=SLOW_S, urgent_s=URGENT_S):
            return Turn(change=None, next_s=next_s)
        ahead = self._forecast(now_s)
        decision = decide_capacity(
            CapacityState(
                table=self._table,
                now_s=now_s,
                current=current,
                forecast=ahead,
                observed_rps=observed_rps,
                observed_luck=luck,
                is_sla_met=is_met,
                attainment=attainment,
                request_size=rate_of(*self._lengths, self._table.mix),
                admitted_rps=getattr(view.settings.admission, "rate_rps", None),
                queue=self._queue(view),
                costs=self._costs(view),
                memory=self._memory,
                limits=self._limits,
            )
        )
        self._memory = decision.memory
        self.turns.append(
            CapacityTurn(now_s=now_s, decision=decision, forecast=ahead, observation=seen)
        )
        change = SettingsChange.between(
            view.settings,
            settings_after(decision, view.settings),
            envelope=view.envelope,
            reshape_s=self._start_s,
            held=view.held_plan,
        )
        return Turn(change=change, next_s=next_s)

    def _watch(self, current: CarriedRate, view: RunView, observed_rps: float, luck: float) -> None:
        last = self._windows[-1]
        look = Look(
            now_s=self._windows.looked_s,
            seconds=last.window_s,
            requests=last.num_arrived,
            ended=sum(bool(timing.token_s) for timing in last.timings),
            queue=self._queue(view),
            observed_rps=observed_rps,
            observed_luck=luck,
        )
        self._memory = watch(self._memory, look, current, self._table, self._limits)

    def _queue(self, view: RunView) -> Queue:
        seconds = sum(window.window_s for window in self._windows)
        finished = sum(len(window.timings) for window in self._windows)
        return Queue(
            waiting=view.num_waiting,
            finished_rps=finished / seconds,
            running=view.num_running,
            window_s=seconds,
        )

    def _entry(self, view: RunView) -> CarriedRate:
        entry = self._table.find(view.settings.plan)
        if entry is None:
            raise TunerError(f"plan {view.settings.plan} is in no entry of the capacity table")
        return entry

    def _costs(self, view: RunView) -> tuple[SwitchCost, ...]:
        plan = view.held_plan
        return switch_costs(
            self._table,
            plan,
            first_slots(plan),
            inventory=self._inventory,
            model=self._model,
            start_s=self._start_s,
        )

    def _forecast(self, now_s: float) -> Forecast | None:
        now = LoadHistory.of(self._slots, mix=self._table.mix)
        history = now if self._past is None else self._past.before(now)
        if not len(history):
            return None
        if self._chosen_s is None or now_s - self._chosen_s >= CHOOSE_EVERY_S:
            forecasters = self._forecasters or list_forecasters()
            self._chosen = choose(history, HORIZON_SLOTS, forecasters=forecasters)
            self._chosen_s = now_s
        return forecast(history, HORIZON_SLOTS, chosen=self._chosen)

    def _rate_rps(self, load: LoadWindow) -> float:
        """The rate in requests of the table's mix."""
        inputs, outputs = load.mean_input_tokens, load.mean_output_tokens
        self._lengths = (inputs or self._lengths[0], outputs or self._lengths[1])
        return load.rate_rps * rate_of(*self._lengths, self._table.mix)

    def _add_to_slot(self, since_s: float, window: TrafficWindow) -> None:
        """Tokens are those of the arrivals, at the mean lengths of what ended last."""
        start_s, arrived = (since_s // SLOT_S) * SLOT_S, window.num_arrived
        before = None
        if self._slots and self._slots[-1].start_s == start_s:
            before = self._slots.pop()
        self._slots.append(
            LoadSlot(
                start_s=start_s,
                seen_s=(before.seen_s if before else 0.0) + window.window_s,
                requests=(before.requests if before else 0.0) + arrived,
                input_tokens=(before.input_tokens if before else 0.0) + arrived * self._lengths[0],
                output_tokens=(before.output_tokens if before else 0.0)
                + arrived * self._lengths[1],
            )
        )
