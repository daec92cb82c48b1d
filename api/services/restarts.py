"""Restarts of observed engines, as the slow loop weighs them."""

from __future__ import annotations

from dataclasses import replace

from api.documents.servers import Restarts
from policies.capacity_state import CapacityDecision, CapacityState, SwitchCost
from policies.capacity_table import CapacityTable, CarriedRate
from policies.decision import Action
from store import UnitOfWork
from store.models import EngineRow

# How long ranks take to start, if the engine has not said.
UNKNOWN_START_S = 60.0


def find_restarts(uow: UnitOfWork, engine: EngineRow) -> Restarts | None:
    """How the service restarts an observed engine; None: it cannot, or the engine is ours."""
    if engine.system is None:
        return None
    server = uow.servers.find(engine.id)
    return None if server is None or server.restart is None else Restarts.from_json(server.restart)


def restart_costs(
    table: CapacityTable, current: CarriedRate, restarts: Restarts | None
) -> tuple[SwitchCost, ...]:
    """The cost of going to each entry by a restart; none where people restart: they weigh it.

    Unless the operator says otherwise (``away_s``), nothing serves until the new server does.
    """
    if restarts is None:
        return ()
    start_s = UNKNOWN_START_S if restarts.start_s is None else restarts.start_s
    away_s = start_s if restarts.away_s is None else restarts.away_s
    cost = SwitchCost(ready_s=start_s, away_s=away_s, back_s=start_s, back_start_s=start_s)
    return tuple(SwitchCost() if entry == current else cost for entry in table.entries)


def as_advice(decision: CapacityDecision, state: CapacityState) -> CapacityDecision:
    """A move that the service cannot make, or not yet: told, and no change to be remembered."""
    if decision.action is not Action.MOVE:
        return decision
    memory = replace(
        decision.memory,
        changes_s=state.memory.changes_s,
        commanded=state.current.settings.plan,
    )
    return replace(decision, action=Action.ADVISE, memory=memory)
