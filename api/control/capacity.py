"""The slow loop of the service: as many devices as the next minutes need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from api.control.forecaster_choices import ForecasterChoices
from api.control.loads import keep_load, load_under_way
from api.documents.control_state import (
    capacity_from_json,
    capacity_to_json,
    look_at,
    memory_to_json,
    queue_of,
)
from api.documents.policy import PolicyDocument, model_from_json, settings_in
from api.documents.server_knobs import table_for
from api.documents.servers import Restarts
from api.services import policies
from api.services.audit import service_caller
from api.services.forecasts import HISTORY_S, HORIZON_SLOTS, history_of
from api.services.policies import Authorship
from api.services.restarts import UNKNOWN_START_S, as_advice, find_restarts, restart_costs
from api.web.context import AppContext
from engine.policy.knobs import ADMISSION_RATE
from engine.spec.plan import ParallelPlan
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
from policies.capacity_watch import watch
from policies.controller import Action, ControlLimits, ControlMemory
from policies.forecast import Forecast, forecast
from policies.load_history import LoadSlot, luck_of, rate_of, surely
from policies.observation import Observation
from policies.shedding import SheddingLimits
from policies.surge import SurgeLimits
from policies.switch_costs import switch_costs
from store import UnitOfWork
from store.decisions import CAPACITY
from store.models import DecisionRow, EngineRow, Heartbeat
from store.models.base import Json

ACTOR = "controller"
# A window of fewer requests is not judged.
MIN_REQUESTS = ControlLimits().min_requests


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What an engine said lately: its heartbeats, what was ``seen`` in them (None: there are none),
    and when that is."""

    beats: Sequence[Heartbeat]
    seen: Observation | None
    now: datetime

    @property
    def now_s(self) -> float:
        return self.now.timestamp()

    @property
    def queue(self) -> Queue | None:
        return queue_of(self.beats)

    @property
    def luck(self) -> float:
        """How far the rate seen may be off by luck alone, as a relative standard deviation."""
        if self.seen is None:
            return 0.0
        return luck_of(self.seen.load.rate_rps * sum(beat.window_s for beat in self.beats))

    def rate_rps(self, table: CapacityTable) -> float | None:
        """Of requests of the table's mix; where nothing ended, requests count as they came. None:
        nobody knows."""
        if self.seen is None:
            return None
        return self.seen.load.rate_rps * (self.request_size(table) or 1.0)

    def request_size(self, table: CapacityTable) -> float | None:
        """Requests of the table's mix that one amounted to; None where nothing ended."""
        if self.seen is None:
            return None
        inputs, outputs = self.seen.load.mean_input_tokens, self.seen.load.mean_output_tokens
        return rate_of(inputs, outputs, table.mix) if inputs and outputs else None

    @property
    def is_met(self) -> bool | None:
        """Whether it met the SLA; None: too few requests to tell."""
        if self.seen is None or self.seen.load.num_requests < MIN_REQUESTS:
            return None
        return self.seen.load.is_sla_met

    @property
    def attainment(self) -> float | None:
        """Which share of it met the SLA; None: too few requests to tell."""
        if self.seen is None or self.seen.report is None or self.is_met is None:
            return None
        return self.seen.report.attainment


class CapacityLoop:
    """Chooses the entry of each engine's capacity table that holds the forecast.

    Its memory lives in the engine's row, the load of past days in a table of its own; which
    forecaster an engine has is worked out again after a restart
    (:mod:`api.control.forecaster_choices`).
    """

    def __init__(self, context: AppContext) -> None:
        self._context = context
        self._choices = ForecasterChoices(context.settings.forecaster)

    def turn(self, uow: UnitOfWork, engine: EngineRow, sight: Sight) -> bool:
        """Look at one engine, whose row the caller holds, and what it said lately; whether its
        capacity changes."""
        keep_load(uow, engine, sight.now)
        if engine.capacity_table is None:
            return False
        table = _table(engine)
        if table is None:
            return False  # of entries that its system cannot run
        current = table.find(settings_in(engine.effective_policy).plan)
        if current is None:
            return False  # a plan of which nothing is known: somebody else's choice
        limits = SurgeLimits(every_s=self._context.settings.control_interval_s)
        known = capacity_from_json(engine.capacity_memory)
        memory = _watch(known.as_of(sight.now_s), table, current, sight, limits)
        if memory != known:
            engine.capacity_memory = capacity_to_json(memory)
        if not self._is_due(memory, table, current, sight):
            return False
        return self._decide(uow, engine, memory, table, current, sight)

    def _decide(
        self,
        uow: UnitOfWork,
        engine: EngineRow,
        memory: CapacityMemory,
        table: CapacityTable,
        current: CarriedRate,
        sight: Sight,
    ) -> bool:
        """Decide, act and keep; whether the engine's capacity changes."""
        before = PolicyDocument.from_json(policies.current(uow, engine).document)
        restarts = find_restarts(uow, engine)
        state = _state(engine, memory, table, current, before, sight, restarts)
        under_way = load_under_way(uow, engine, sight.now)
        state = replace(
            state,
            forecast=self._forecast(uow, engine, table, under_way, state.now_s),
            limits=replace(state.limits, dwell_s=self._context.settings.capacity_dwell_s),
        )
        decision = decide_capacity(state)
        if engine.system is not None and not (restarts and restarts.may_begin(state.now_s)):
            decision = as_advice(decision, state)
        engine.capacity_memory = capacity_to_json(decision.memory)
        self._context.metrics.decisions.labels(
            action=decision.action, reason=CAPACITY + decision.reason
        ).inc()
        version = _act(uow, engine, before, decision, state)
        _keep(uow, engine, decision, state, sight.seen, version)
        return version is not None

    def _is_due(
        self, memory: CapacityMemory, table: CapacityTable, current: CarriedRate, sight: Sight
    ) -> bool:
        observed_rps = sight.rate_rps(table) or 0.0
        settings = self._context.settings
        return is_due(
            memory,
            sight.now_s,
            is_urgent=sight.is_met is False or observed_rps > current.low_rps,
            slow_s=settings.capacity_interval_s,
            urgent_s=2 * settings.control_window_s,
        )

    def prune(self, uow: UnitOfWork, now: datetime) -> None:
        """Drop load that no forecast needs any more."""
        uow.loads.prune(before_s=int(now.timestamp()) - HISTORY_S)

    def _forecast(
        self,
        uow: UnitOfWork,
        engine: EngineRow,
        table: CapacityTable,
        under_way: Sequence[LoadSlot],
        now_s: float,
    ) -> Forecast | None:
        history = history_of(uow, engine, now_s=now_s, mix=table.mix, under_way=under_way)
        if not len(history):
            return None
        chosen = self._choices.of(engine.id, history, now_s)
        return forecast(history, HORIZON_SLOTS, chosen=chosen)


def is_short(engine: EngineRow, sight: Sight) -> bool:
    """Whether an engine with a capacity table is asked for more than its plan carries: by more than
    luck explains, where the SLA is met."""
    if engine.capacity_table is None:
        return False
    table = CapacityTable.from_json(engine.capacity_table)
    current = table.find(settings_in(engine.effective_policy).plan)
    rate_rps = sight.rate_rps(table)
    if current is None or rate_rps is None:
        return False
    if sight.is_met is not False:
        rate_rps = surely(rate_rps, sight.luck, CapacityLimits.chance)
    return rate_rps > current.low_rps


def _watch(
    memory: CapacityMemory,
    table: CapacityTable,
    current: CarriedRate,
    sight: Sight,
    limits: SurgeLimits,
) -> CapacityMemory:
    """With the heartbeats that came since the last look."""
    look = look_at(sight.beats, memory.surge.read_s, sight.queue)
    if look is None:
        return memory
    observed_rps = sight.rate_rps(table) or 0.0
    look = replace(look, observed_rps=observed_rps, observed_luck=sight.luck)
    return watch(memory, look, current, table, CapacityLimits(surge=limits))


def _table(engine: EngineRow) -> CapacityTable | None:
    assert engine.capacity_table is not None, "looked at for its table"
    table = CapacityTable.from_json(engine.capacity_table)
    return table if engine.system is None else table_for(engine.system, table)


def _state(
    engine: EngineRow,
    memory: CapacityMemory,
    table: CapacityTable,
    current: CarriedRate,
    document: PolicyDocument,
    sight: Sight,
    restarts: Restarts | None,
) -> CapacityState:
    return CapacityState(
        table=table,
        now_s=sight.now_s,
        current=current,
        forecast=None,
        observed_rps=sight.rate_rps(table),
        observed_luck=sight.luck,
        is_sla_met=sight.is_met,
        attainment=sight.attainment,
        queue=sight.queue,
        age_s=0.0 if sight.seen is None else sight.seen.load.age_s,
        costs=_costs(engine, table, current.settings.plan)
        if engine.system is None
        else restart_costs(table, current, restarts),
        request_size=sight.request_size(table),
        admitted_rps=getattr(document.settings.admission, "rate_rps", None),
        memory=memory,
        limits=_limits(engine, document.guards),
    )


def _limits(engine: EngineRow, guards: Json) -> CapacityLimits:
    """The policy's guards; without them as many devices as the engine has."""
    has = policies.inventory_of(engine).max_ranks
    most, interval_s = guards["max_gpus"], guards["min_interval_s"]
    per_h = guards["max_reshapes_per_h"]
    return CapacityLimits(
        max_devices=has if most is None else min(int(most), has),
        min_interval_s=interval_s or 0.0,
        max_per_h=CapacityLimits.max_per_h if per_h is None else int(per_h),
        shedding=SheddingLimits(is_allowed=guards["allow_shedding"] and _can_shed(engine)),
    )


def _can_shed(engine: EngineRow) -> bool:
    """Engines of earlier versions cannot turn requests away by a rate."""
    return any(knob.get("name") == ADMISSION_RATE for knob in engine.capabilities)


def _costs(engine: EngineRow, table: CapacityTable, plan: ParallelPlan) -> tuple[SwitchCost, ...]:
    """Of going to each entry, by what the engine says that starting ranks takes."""
    ways = [way for knob in engine.capabilities for way in knob.get("ways") or ()]
    known = [way["start_s"] for way in ways if way.get("start_s")]
    start_s = max(known, default=UNKNOWN_START_S)
    return switch_costs(
        table,
        plan,
        first_slots(plan),
        inventory=policies.inventory_of(engine),
        model=model_from_json(engine.model),
        start_s=lambda _: start_s,
    )


def _act(
    uow: UnitOfWork,
    engine: EngineRow,
    before: PolicyDocument,
    decision: CapacityDecision,
    state: CapacityState,
) -> int | None:
    """Write the entry's settings and what is let in as the next policy version; returns it when
    there is one.

    After a move the fast loop starts afresh from these settings.
    """
    settings = settings_after(decision, before.settings)
    if settings == before.settings:
        return None
    by = Authorship(caller=service_caller(ACTOR), origin=ACTOR, reason=_why(decision, state))
    number = engine.desired_version
    policies.write(uow, engine, before, replace(before, settings=settings), by)
    if engine.desired_version == number:
        return None
    if decision.action is Action.MOVE:
        memory = ControlMemory(commanded=settings, changed_s=state.now_s)
        engine.control_memory = memory_to_json(memory)
    return engine.desired_version


def _why(decision: CapacityDecision, state: CapacityState) -> str:
    """What a version's history says of it."""
    entry, rate_rps = decision.entry, decision.admission_rps
    said = [f"{decision.reason}"]
    if decision.needed_rps is not None:
        said.append(
            f"{decision.needed_rps:.3g} requests/s needed, {entry.settings.plan} carries "
            f"{entry.low_rps:.3g} ({entry.fidelity})"
        )
    if rate_rps != state.admitted_rps:
        said.append(
            "all requests are let in" if rate_rps is None else f"{rate_rps:g} a second are let in"
        )
    return ": ".join((said[0], ", ".join(said[1:])))


def _keep(
    uow: UnitOfWork,
    engine: EngineRow,
    decision: CapacityDecision,
    state: CapacityState,
    seen: Observation | None,
    version: int | None,
) -> None:
    """Keep each decision that differs from the last one of this loop."""
    reason, ahead = CAPACITY + decision.reason, state.forecast
    last = uow.decisions.find_last(engine.id, loop=CAPACITY)
    is_repeated = last is not None and last.reason == reason
    if decision.action is Action.ADVISE and last is not None:
        told = (Action.ADVISE, decision.entry.settings.to_json())
        is_repeated = is_repeated and (last.action, last.settings) == told
    if version is None and is_repeated:
        return
    uow.decisions.add(
        DecisionRow(
            engine_id=engine.id,
            action=decision.action,
            reason=reason,
            band_index=None,
            settings=decision.entry.settings.to_json(),
            rejected=[],
            observed={
                **({} if seen is None else seen.to_json()),
                "needed_rps": decision.needed_rps,
                "admit_rps": decision.admit_rps,
                "admission_rps": decision.admission_rps,
                "correction": decision.memory.correction,
                "caution": decision.memory.caution,
                "forecaster": None if ahead is None else ahead.backtest.forecaster,
            },
            policy_version=version,
        )
    )
