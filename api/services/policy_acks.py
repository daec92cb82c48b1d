"""Acknowledgements: what an engine did with the version that it was asked to run."""

from __future__ import annotations

from api.documents.inventory import check_plan
from api.documents.policy import settings_in
from api.schemas.serving import Acknowledge, PolicyView
from api.services import identity, policies
from api.services.in_force import adopt, put_in_force
from api.web.auth import Caller
from store import UnitOfWork
from store.models import AckState, EngineRow, PolicyVersion
from store.models.base import utc_now


def acknowledge(
    uow: UnitOfWork,
    engine_id: str,
    version: int,
    body: Acknowledge,
    *,
    credential: str | None,
    caller: Caller,
) -> tuple[PolicyView, bool]:
    """Keep what the engine did; the policy now, and whether this was news. A refused version is
    replaced by what the engine really runs.

    The same acknowledgement may come twice (the engine retries), and the second time when a newer
    version was acknowledged meanwhile: then it changes nothing.

    Raises:
        ApiError: 403, not from the engine itself.
        PolicyError: a plan beyond the engine's inventory.
    """
    engine = uow.engines.get(engine_id, for_update=True)
    identity.require_own(engine, credential)
    return note_ack(uow, engine, version, body, caller)


def note_ack(
    uow: UnitOfWork, engine: EngineRow, version: int, body: Acknowledge, caller: Caller
) -> tuple[PolicyView, bool]:
    """:func:`acknowledge`, for whoever is known to speak for the engine, and holds its row."""
    row = uow.policies.get(engine.id, version)
    in_force = settings_in(body.policy)
    check_plan(in_force.plan, policies.inventory_of(engine), engine.model, pointer="/policy/plan")
    result, before = AckState(body.result), row.ack_state
    is_first, is_late = before is AckState.PENDING, version < engine.applied_version
    if is_first or (result is AckState.REFUSED and not is_late):
        _note_ack_on(row, body)
    if not is_late:
        engine.effective_policy = in_force.to_json()
        if result is AckState.APPLIED:
            engine.applied_version = version
            if is_first:
                put_in_force(engine, row, in_force)
        elif version == engine.desired_version:
            adopt(uow, engine, in_force, caller, reason=f"version {version} was refused")
    is_news = is_first or (before is not result and not is_late)
    return policies.view(engine, policies.current(uow, engine)), is_news


def _note_ack_on(row: PolicyVersion, body: Acknowledge) -> None:
    row.ack_state = AckState(body.result)
    row.ack_message = body.message or None
    row.ack_changes = dict(body.changes)
    row.ack_seconds = body.seconds
    row.ack_transition = body.transition
    row.acknowledged_at = utc_now()
