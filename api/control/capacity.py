"""The slow loop of the service: as many devices as the next minutes need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
from policies.decision import LoadWindow
from policies.forecast import Forecast, forecast
from policies.load_history import LoadSlot, luck_of, rate_of
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


class CapacityLoop:
    """Chooses the entry of each engine's capacity table that holds the forecast.

    Its memory lives in the engine's row, the load of past days in a table of its own; which
    forecaster an engine has is worked out again after a restart
    (:mod:`api.control.forecaster_choices`).
    """

    def __init__(self, context: AppContext) -> None:
        self._context = context
        self._choices = ForecasterChoices(context.settings.forecaster)

    def turn(
        self,
        uow: UnitOfWork,
        engine: EngineRow,
        beats: Sequence[Heartbeat],
        seen: Observation | None,
        now: datetime,
    ) -> bool:
        """Look at one engine, whose row the caller holds, and what it said lately (``beats``,
        ``seen`` of them); whether its capacity changes."""
        keep_load(uow, engine, now)
        if engine.capacity_table is None:
            return False
        table = _table(engine)
        if table is None:
            return False  # of entries that its system cannot run
        current = table.find(settings_in(engine.effective_policy).plan)
        if current is None:
            return False  # a plan of which nothing is known: somebody else's choice
        settings = self._context.settings
        luck = _luck(seen, settings.control_window_s)
        queue = queue_of(beats)
        limits = SurgeLimits(every_s=settings.control_interval_s)
        known = capacity_from_json(engine.capacity_memory)
        memory = known.as_of(now.timestamp())
        memory = _watch(memory, table, current, beats, seen, luck, queue, limits)
        if memory != known:
            engine.capacity_memory = capacity_to_json(memory)
        if not self._is_due(memory, table, current, seen, now):
            return False
        before = PolicyDocument.from_json(policies.current(uow, engine).document)
        restarts = find_restarts(uow, engine)
        state = _state(engine, memory, table, current, before, seen, now, restarts)
        ahead = self._forecast(uow, engine, table, load_under_way(uow, engine, now), state.now_s)
        state = replace(
            state,
            forecast=ahead,
            observed_luck=luck,
            queue=queue,
            limits=replace(state.limits, dwell_s=settings.capacity_dwell_s),
        )
        decision = decide_capacity(state)
        if engine.system is not None and not (restarts and restarts.may_begin(state.now_s)):
            decision = as_advice(decision, state)
        engine.capacity_memory = capacity_to_json(decision.memory)
        self._context.metrics.decisions.labels(
            action=decision.action, reason=CAPACITY + decision.reason
        ).inc()
        version = _act(uow, engine, before, decision, state)
        _keep(uow, engine, decision, state, seen, version)
        return version is not None

    def _is_due(
        self,
        memory: CapacityMemory,
        table: CapacityTable,
        current: CarriedRate,
        seen: Observation | None,
        now: datetime,
    ) -> bool:
        observed_rps = 0.0 if seen is None else _rate_rps(seen.load, table.mix)
        settings = self._context.settings
        return is_due(
            memory,
            now.timestamp(),
            is_urgent=_is_met(seen) is False or observed_rps > current.low_rps,
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


def is_short(engine: EngineRow, seen: Observation | None) -> bool:
    """Whether an engine with a capacity table is asked for more than its plan carries."""
    if engine.capacity_table is None or seen is None:
        return False
    table = CapacityTable.from_json(engine.capacity_table)
    current = table.find(settings_in(engine.effective_policy).plan)
    return current is not None and _rate_rps(seen.load, table.mix) > current.low_rps


def _watch(
    memory: CapacityMemory,
    table: CapacityTable,
    current: CarriedRate,
    beats: Sequence[Heartbeat],
    seen: Observation | None,
    luck: float,
    queue: Queue | None,
    limits: SurgeLimits,
) -> CapacityMemory:
    """With the heartbeats that came since the last look."""
    look = look_at(beats, memory.surge.read_s, queue)
    if look is None:
        return memory
    observed_rps = 0.0 if seen is None else _rate_rps(seen.load, table.mix)
    look = replace(look, observed_rps=observed_rps, observed_luck=luck)
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
    seen: Observation | None,
    now: datetime,
    restarts: Restarts | None,
) -> CapacityState:
    return CapacityState(
        table=table,
        now_s=now.timestamp(),
        current=current,
        forecast=None,
        observed_rps=None if seen is None else _rate_rps(seen.load, table.mix),
        is_sla_met=_is_met(seen),
        attainment=_attainment(seen),
        age_s=0.0 if seen is None else seen.load.age_s,
        costs=_costs(engine, table, current.settings.plan)
        if engine.system is None
        else restart_costs(table, current, restarts),
        request_size=None if seen is None else _request_size(seen.load, table.mix),
        admitted_rps=getattr(document.settings.admission, "rate_rps", None),
        memory=memory,
        limits=_limits(engine, document.guards),
    )


def _is_met(seen: Observation | None) -> bool | None:
    """Whether the window met the SLA; None: too few requests to tell."""
    is_judged = seen is not None and seen.load.num_requests >= MIN_REQUESTS
    return seen.load.is_sla_met if seen is not None and is_judged else None


def _attainment(seen: Observation | None) -> float | None:
    """Which share of the window met the SLA; None: too few requests to tell."""
    if seen is None or seen.report is None or _is_met(seen) is None:
        return None
    return seen.report.attainment


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


def _rate_rps(load: LoadWindow, mix: tuple[float, float]) -> float:
    """Of requests of the table's mix; where nothing ended, requests count as they came."""
    size = _request_size(load, mix)
    return load.rate_rps if size is None else load.rate_rps * size


def _request_size(load: LoadWindow, mix: tuple[float, float]) -> float | None:
    """Requests of ``mix`` that one amounted to; None where nothing ended."""
    inputs, outputs = load.mean_input_tokens, load.mean_output_tokens
    if not inputs or not outputs:
        return None
    return rate_of(inputs, outputs, mix)


def _luck(seen: Observation | None, window_s: float) -> float:
    """How far the window's rate may be off by luck alone."""
    return 0.0 if seen is None else luck_of(seen.load.rate_rps * window_s)


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
