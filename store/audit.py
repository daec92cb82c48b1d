"""The audit chain: append-only, every entry sealed over the one before."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from store.models import AuditEntry
from store.models.base import Json, utc_now
from store.paging import Page, PageRequest, fetch_page

GENESIS = "0" * 64
# Names the PostgreSQL advisory lock that puts appends in one order; any fixed number would do.
CHAIN_LOCK = 0x6765617273


def hash_document(document: Any) -> str:
    """SHA-256 of a JSON document in canonical form (sorted keys, no spaces), hex."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class AuditRepository:
    """Appends to and verifies the chain."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def append(
        self,
        *,
        actor: str,
        action: str,
        resource: str,
        before: Json | None,
        after: Json | None,
        reason: str,
        request_id: str | None,
    ) -> AuditEntry:
        """Seal and add one entry; documents are kept as their hashes."""
        if self._session.get_bind().dialect.name == "postgresql":
            self._session.execute(sa.select(sa.func.pg_advisory_xact_lock(CHAIN_LOCK)))
        entry = AuditEntry(
            actor=actor,
            action=action,
            resource=resource,
            before_hash=None if before is None else hash_document(before),
            after_hash=None if after is None else hash_document(after),
            reason=reason,
            request_id=request_id,
            previous_hash=self._last_hash(),
            created_at=utc_now(),
        )
        entry.hash = _seal(entry)
        self._session.add(entry)
        self._session.flush()
        return entry

    def list_page(self, page: PageRequest, *, resource: str | None = None) -> Page[AuditEntry]:
        """Entries, newest first."""
        query = sa.select(AuditEntry)
        if resource is not None:
            query = query.where(AuditEntry.resource == resource)
        return fetch_page(self._session, query, AuditEntry.id, page)

    def find_break(self) -> int | None:
        """The id of the first entry that does not continue the chain, or None when it is whole."""
        previous = GENESIS
        for entry in self._session.scalars(sa.select(AuditEntry).order_by(AuditEntry.id)):
            if entry.previous_hash != previous or entry.hash != _seal(entry):
                return entry.id
            previous = entry.hash
        return None

    def _last_hash(self) -> str:
        query = sa.select(AuditEntry.hash).order_by(AuditEntry.id.desc()).limit(1)
        return self._session.scalars(query).one_or_none() or GENESIS


def _seal(entry: AuditEntry) -> str:
    return hash_document(
        {
            "actor": entry.actor,
            "action": entry.action,
            "resource": entry.resource,
            "before_hash": entry.before_hash,
            "after_hash": entry.after_hash,
            "reason": entry.reason,
            "request_id": entry.request_id,
            "previous_hash": entry.previous_hash,
            "created_at": entry.created_at.isoformat(),
        }
    )
