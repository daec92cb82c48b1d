"""The load of engines, minute by minute, as their heartbeats tell it."""

from __future__ import annotations

from datetime import UTC, datetime

from api.documents.control_state import load_slots
from policies.load_history import SLOT_S, LoadSlot
from store import UnitOfWork
from store.models import EngineLoad, EngineRow

# Heartbeats this old are still taken up: a service that was away lost no load.
BACKLOG_S = 1800


def keep_load(uow: UnitOfWork, engine: EngineRow, now: datetime) -> None:
    """Keep the minutes that are over and not kept yet, from the engine's heartbeats.

    Minutes may lie ahead: a clock that ran ahead was set back, or this one is behind for now. That
    cannot be told, so they stay, and each is written anew when its time has come.
    """
    this_minute_s = _minute_s(now)
    last_s = uow.loads.last_start_s(engine.id)
    if last_s is not None and last_s >= this_minute_s:
        last_s = uow.loads.last_start_s(engine.id, before_s=this_minute_s - int(SLOT_S))
    next_s = this_minute_s - BACKLOG_S
    if last_s is not None:
        next_s = max(next_s, last_s + int(SLOT_S))
    if next_s >= this_minute_s:
        return
    beats = uow.engines.list_heartbeats(engine.id, since=datetime.fromtimestamp(next_s, UTC))
    slots = load_slots(beats)
    uow.loads.put(
        EngineLoad(
            engine_id=engine.id,
            start_s=start_s,
            seen_s=slot.seen_s,
            requests=slot.requests,
            input_tokens=slot.input_tokens,
            output_tokens=slot.output_tokens,
        )
        for start_s, slot in slots.items()
        if next_s <= start_s < this_minute_s
    )


def load_under_way(uow: UnitOfWork, engine: EngineRow, now: datetime) -> list[LoadSlot]:
    """The minute that is not over yet, if anything is known of it."""
    since = datetime.fromtimestamp(_minute_s(now), UTC)
    slots = load_slots(uow.engines.list_heartbeats(engine.id, since=since))
    return list(slots.values())


def _minute_s(now: datetime) -> int:
    return int(now.timestamp() // SLOT_S * SLOT_S)
