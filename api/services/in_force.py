"""What goes in force with a policy's version: SLA, recommendation, schedule and capacity table."""

from __future__ import annotations

from dataclasses import replace

from api.documents.control_state import memory_to_json
from api.documents.policy import OTHER_MODEL, PolicyDocument
from api.services.audit import record
from api.web.auth import Caller
from engine.spec.settings import Settings
from policies.controller import ControlMemory
from store import UnitOfWork
from store.models import AckState, EngineRow, PolicyVersion
from store.models.base import utc_now


def adopt(
    uow: UnitOfWork,
    engine: EngineRow,
    in_force: Settings,
    caller: Caller,
    *,
    reason: str,
    other_model: str | None = None,
) -> PolicyVersion:
    """Make what the engine runs the requested policy, as a version already applied.

    What the service adds (SLA, guards, provenance, recommendation, schedule) is that of the last
    version that was applied and not refused: nothing of a refused one stays. Where the engine
    serves another model now (``other_model``: how it differs), only SLA and guards stay.
    """
    before = None
    if engine.desired_version:
        before = uow.policies.get(engine.id, engine.desired_version).document
    kept = uow.policies.find_applied(engine.id, before=engine.desired_version + 1)
    if kept is None:
        document = PolicyDocument(engine=engine.id, settings=in_force)
    else:
        document = replace(PolicyDocument.from_json(kept.document), settings=in_force)
    if other_model is not None:
        document = replace(document, provenance={OTHER_MODEL: other_model})
    after = document.to_json()
    row = uow.policies.add(
        engine,
        document=after,
        control=None if kept is None or other_model is not None else kept.control,
        origin="adopted",
        reason=reason,
        created_by=caller.actor,
    )
    mark_applied(engine, row, in_force)
    if engine.capacity_memory is not None:
        # What runs is known now, and no drift: the slow loop goes on from there.
        engine.capacity_memory = {**engine.capacity_memory, "commanded": str(in_force.plan)}
    engine.effective_policy = in_force.to_json()
    resource = f"engines/{engine.id}/policy"
    record(uow, caller, "policy.adopted", resource, reason=reason, before=before, after=after)
    return row


def mark_applied(engine: EngineRow, row: PolicyVersion, in_force: Settings) -> None:
    """Put a version in force that the engine runs already, without its acknowledgement."""
    row.ack_state, row.acknowledged_at = AckState.APPLIED, utc_now()
    engine.applied_version = row.version
    put_in_force(engine, row, in_force)


def put_in_force(engine: EngineRow, row: PolicyVersion, in_force: Settings) -> None:
    """Make SLA, recommendation, schedule and capacity table of a version those of the engine.

    With others the controller starts afresh, from what runs now; the slow loop also where a
    recommendation was applied again.
    """
    control = row.control or {}
    found = (control.get("recommendation_id"), control.get("schedule"))
    engine.sla = row.document.get("sla")
    if control.get("recommendation_id") != engine.recommendation_id:
        engine.drift_memory = None
    if found != (engine.recommendation_id, engine.schedule):
        engine.recommendation_id, engine.schedule = found
        memory = ControlMemory(commanded=in_force, changed_s=utc_now().timestamp())
        engine.control_memory = memory_to_json(memory)
    if control.get("capacity_table") != engine.capacity_table or row.origin == "recommendation":
        engine.capacity_table, engine.capacity_memory = control.get("capacity_table"), None
