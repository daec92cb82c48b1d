"""Settings that somebody changed at the engine itself: left alone, adopted, or put back.

Which of these is the policy's guard ``on_drift``. A change through the service is a version of the
policy already, and so never one of these.
"""

from __future__ import annotations

from datetime import datetime
from typing import assert_never

from api.documents.control_state import memory_from_json, memory_to_json
from api.documents.policy import PolicyDocument, settings_in
from api.services import policies
from api.services.audit import service_caller
from api.services.in_force import adopt
from api.services.policies import Authorship
from engine.spec.settings import Settings
from policies.controller import ControlMemory
from policies.decision import OnDrift
from store import UnitOfWork
from store.models import EngineRow

ACTOR = "controller"


def settle_by_hand(uow: UnitOfWork, engine: EngineRow, now: datetime, *, settle_s: float) -> bool:
    """Whether the policy now has a version because the engine runs other settings than it was asked
    to. The caller holds the engine's row, and every version of it was acknowledged.

    A heartbeat that was on its way when the last version came in force counts for nothing.
    """
    in_force = settings_in(engine.effective_policy)
    if memory_from_json(engine.control_memory).commanded == in_force:
        return False  # as nearly always: nothing more to read
    version = policies.current(uow, engine)
    document = PolicyDocument.from_json(version.document)
    at = version.acknowledged_at
    has_settled = at is not None and (now - at).total_seconds() >= settle_s
    if document.settings == in_force or not has_settled:
        return False
    match OnDrift(document.guards["on_drift"]):
        case OnDrift.PAUSE:
            return False  # both loops wait, and say so
        case OnDrift.ADOPT:
            reason = "changed by hand at the engine"
            adopt(uow, engine, in_force, service_caller(ACTOR), reason=reason)
            _remember(engine, in_force, now)
        case OnDrift.REVERT:
            by = Authorship(
                caller=service_caller(ACTOR),
                origin=ACTOR,
                reason="put back what was changed by hand at the engine",
            )
            policies.write(uow, engine, document, document, by, is_again=True)
            _remember(engine, document.settings, now)
        case never:
            assert_never(never)
    return True


def _remember(engine: EngineRow, settings: Settings, now: datetime) -> None:
    """Both loops go on from these settings."""
    memory = ControlMemory(commanded=settings, changed_s=now.timestamp())
    engine.control_memory = memory_to_json(memory)
    if engine.capacity_memory is not None:
        engine.capacity_memory = {**engine.capacity_memory, "commanded": str(settings.plan)}
