"""Policies of engines: read, patch, write and roll back."""

from __future__ import annotations

from dataclasses import dataclass, replace

from api.documents.inventory import check_plan, read_inventory
from api.documents.policy import (
    OTHER_MODEL,
    PolicyDocument,
    check_limits,
    differences,
    envelope_in,
    etag,
    settings_in,
)
from api.documents.recommendation import predicted_for
from api.documents.server_knobs import as_restarts, check_restart, check_settings
from api.documents.transition import foresee
from api.schemas.serving import ChangeSet, PolicyView
from api.services.audit import record
from api.services.in_force import mark_applied
from api.web.auth import Caller
from api.web.errors import ApiError
from engine.spec.inventory import Inventory
from engine.spec.settings import Settings
from store import ConflictError, UnitOfWork
from store.models import EngineRow, PolicyVersion
from store.models.base import Json

ROLLBACK = "rollback"
# What goes in force with a version before any recommendation was applied.
NO_CONTROL: Json = {"recommendation_id": None, "schedule": None, "capacity_table": None}


@dataclass(frozen=True, kw_only=True)
class Authorship:
    """Why a version is written and by which path."""

    caller: Caller
    origin: str
    reason: str


def current(uow: UnitOfWork, engine: EngineRow) -> PolicyVersion:
    """The version the engine is asked to run."""
    return uow.policies.get(engine.id, engine.desired_version)


def current_document(uow: UnitOfWork, engine: EngineRow) -> PolicyDocument:
    """The policy of that version."""
    return PolicyDocument.from_json(current(uow, engine).document)


def inventory_of(engine: EngineRow) -> Inventory:
    """What plans of the engine may use."""
    return read_inventory(engine.inventory, engine.capabilities)


def view(engine: EngineRow, version: PolicyVersion) -> PolicyView:
    """A version with what is in force beside it."""
    return PolicyView(
        engine_id=engine.id,
        version=version.version,
        requested=version.document,
        effective=engine.effective_policy,
        applied_version=engine.applied_version,
        ack_state=version.ack_state,
        ack_message=version.ack_message,
    )


def etag_of(policy: PolicyView) -> str:
    """The strong ETag of the requested policy."""
    return etag(policy.version, policy.requested)


def require_match(if_match: str | None, policy: PolicyView) -> None:
    """Refuse a write that was not made against the current version.

    Raises:
        ApiError: 428 without If-Match, 412 when it is stale.
    """
    now = etag_of(policy)
    if if_match is None:
        raise ApiError(
            428, "if_match_required", "send If-Match with the ETag of the policy you read"
        )
    given = [part.strip() for part in if_match.split(",")]
    if now not in given and "*" not in given:
        raise ApiError(
            412,
            "stale_policy",
            f"the policy is now version {policy.version}; read it and patch again",
            headers={"ETag": now},
        )


def patch(
    uow: UnitOfWork,
    engine_id: str,
    body: Json,
    *,
    if_match: str | None,
    is_dry_run: bool,
    caller: Caller,
    reason: str,
) -> ChangeSet:
    """Merge ``body`` into the engine's policy as a new version, or say what that would do.

    Raises:
        ApiError: 428 or 412 for If-Match.
        PolicyError: an unknown knob, a wrong value, or one outside the envelope.
    """
    engine = uow.engines.get(engine_id, for_update=True)
    before = current(uow, engine)
    require_match(if_match, view(engine, before))
    document = PolicyDocument.from_json(before.document)
    by = Authorship(caller=caller, origin="operator", reason=reason)
    return write(uow, engine, document, document.patched(body), by, is_dry_run=is_dry_run)


def patched(uow: UnitOfWork, engine: EngineRow, body: Json) -> PolicyDocument:
    """The current version with ``body`` merged into it.

    Raises:
        PolicyError: an unknown knob or a wrong value.
    """
    return current_document(uow, engine).patched(body)


def write(
    uow: UnitOfWork,
    engine: EngineRow,
    before: PolicyDocument,
    after: PolicyDocument,
    by: Authorship,
    *,
    control: Json | None = None,
    is_dry_run: bool = False,
    is_again: bool = False,
) -> ChangeSet:
    """Check ``after`` and make it the engine's next version; no change writes nothing, unless it
    shall be put in force again (``is_again``).

    ``before`` is the current version's document, ``control`` the recommendation and schedule that
    go in force with ``after`` (by default those of the current version). The caller holds the
    engine's row.
    """
    envelope = envelope_in(engine.envelope)
    _check_server(uow, engine, before, after)
    check_limits(after, envelope=envelope)
    check_plan(after.settings.plan, inventory_of(engine), engine.model, pointer="/plan")
    version = current(uow, engine)
    changes = differences(before, after, envelope)
    if engine.system is not None:
        changes = as_restarts(changes)
    control = control or version.control
    is_new = is_again or after != before or control != version.control
    if is_new and not is_dry_run:
        version = _add(uow, engine, before, after, control, by)
    return ChangeSet(
        is_dry_run=is_dry_run,
        changes=[change.to_json() for change in changes],
        predicted=_predicted(uow, control, after.settings),
        transition=foresee(
            before,
            after,
            envelope=envelope,
            inventory=inventory_of(engine),
            model=engine.model,
            capabilities=engine.capabilities,
        ),
        warnings=after.settings.warnings if changes else [],
        policy=view(engine, version),
    )


def _add(
    uow: UnitOfWork,
    engine: EngineRow,
    before: PolicyDocument,
    after: PolicyDocument,
    control: Json | None,
    by: Authorship,
) -> PolicyVersion:
    """The next version, told of in the audit."""
    row = uow.policies.add(
        engine,
        document=after.to_json(),
        control=control,
        origin=by.origin,
        reason=by.reason,
        created_by=by.caller.actor,
    )
    record(
        uow,
        by.caller,
        f"policy.{by.origin}",
        f"engines/{engine.id}/policy",
        reason=by.reason,
        before=before.to_json(),
        after=after.to_json(),
    )
    if engine.system is not None and settings_in(engine.effective_policy) == after.settings:
        mark_applied(engine, row, after.settings)  # its command stays as it is: none will say so
    return row


def rollback(
    uow: UnitOfWork, engine_id: str, version: int | None, *, caller: Caller, reason: str
) -> ChangeSet:
    """Write an earlier version as a new one: its document, and what went in force with it. The
    schedule of a later recommendation would move the settings away again. Without ``version``, each
    call goes one version further back.

    Raises:
        ConflictError: no other version was applied before the current one.
        NotFoundError: no such engine or version.
    """
    engine = uow.engines.get(engine_id, for_update=True)
    target = uow.policies.get(engine_id, version) if version else _applied_before(uow, engine)
    by = Authorship(caller=caller, origin=ROLLBACK, reason=f"{reason}{back_to(target.version)}")
    newest = current(uow, engine)
    before, after = (PolicyDocument.from_json(row.document) for row in (newest, target))
    control = target.control or (None if newest.control is None else NO_CONTROL)
    return write(uow, engine, before, after, by, control=control)


def _check_server(
    uow: UnitOfWork, engine: EngineRow, before: PolicyDocument, after: PolicyDocument
) -> None:
    """Hold an observed engine's policy to what its serving system can be told."""
    if engine.system is None:
        return
    check_settings(engine.system, after.settings)
    server = uow.servers.find(engine.id)
    can_restart = server is not None and server.restart is not None
    check_restart(engine.name, before.settings, after.settings, can_restart=can_restart)


def back_to(version: int) -> str:
    """How the reason of a rollback to ``version`` ends."""
    return f" (to version {version})"


def _applied_before(uow: UnitOfWork, engine: EngineRow) -> PolicyVersion:
    """The newest one that was applied before the current one and says something else; of a
    rollback, before the version that it is a copy of: what lies between was rolled back."""
    row = current(uow, engine)
    now, is_copy = _content(row), row.origin == ROLLBACK
    while OTHER_MODEL not in PolicyDocument.from_json(row.document).provenance:
        found = uow.policies.find_applied(engine.id, before=row.version)
        if found is None:
            break
        is_same = _content(found) == now
        if not is_same and not is_copy:
            return found
        row, is_copy = found, is_copy and not is_same
    raise ConflictError(
        f"engine {engine.id} has no other version of its model applied before "
        f"{engine.desired_version}; name a version to ask for it anyway"
    )


def _content(row: PolicyVersion) -> tuple[PolicyDocument, Json]:
    """What a version asks for, without how it came to be."""
    document = replace(PolicyDocument.from_json(row.document), provenance={})
    return document, row.control or NO_CONTROL


def _predicted(uow: UnitOfWork, control: Json | None, settings: Settings) -> Json | None:
    """The recommendation's prediction, when ``settings`` are what it recommends."""
    recommendation_id = (control or {}).get("recommendation_id")
    if recommendation_id is None:
        return None
    return predicted_for(uow.recommendations.get(recommendation_id).document, settings)
