"""One line for the audit, from whoever caused it."""

from __future__ import annotations

from api.schemas.access import AuditVerdictView, Scope
from api.web.auth import Caller
from store import UnitOfWork
from store.models.base import Json


def record(
    uow: UnitOfWork,
    caller: Caller,
    action: str,
    resource: str,
    *,
    reason: str,
    before: Json | None = None,
    after: Json | None = None,
) -> None:
    """Append an audit entry for ``caller``."""
    uow.audit.append(
        actor=caller.actor,
        action=action,
        resource=resource,
        before=before,
        after=after,
        reason=reason,
        request_id=caller.trace_id or None,
    )


def verify(uow: UnitOfWork, *, since: int, head: str | None) -> AuditVerdictView:
    """Follow the chain, and look for a hash that was noted earlier."""
    found = uow.audit.verify(since=since)
    return AuditVerdictView(
        is_whole=found.is_whole,
        num_entries=found.num_entries,
        last_hash=found.last_hash,
        broken_id=found.broken_id,
        reason=found.reason,
        has_head=None if head is None else uow.audit.has(head),
    )


def service_caller(actor: str) -> Caller:
    """The caller for what a part of the service itself does (controller, worker)."""
    return Caller(actor=actor, scopes=frozenset(Scope), trace_id="")
