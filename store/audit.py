"""The audit chain: append-only, every entry sealed over the one before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from store.models import AuditEntry
from store.models.base import Json, utc_now
from store.paging import Page, PageRequest, fetch_page

GENESIS = "0" * 64
READ_AT_ONCE = 500
# Names the PostgreSQL advisory lock that puts appends in one order; any fixed number would do.
CHAIN_LOCK = 0x6765617273


def hash_document(document: Any) -> str:
    """SHA-256 of a JSON document in canonical form (sorted keys, no spaces), hex."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class AuditVerdict:
    """What following the chain found: its last hash, or the first entry that breaks it and why.

    ``num_entries`` were read. Entries cut off at the end leave a chain that is whole: whoever has
    noted an earlier hash can look for it (:meth:`AuditRepository.has`).
    """

    num_entries: int
    last_hash: str | None = None
    broken_id: int | None = None
    reason: str | None = None

    @property
    def is_whole(self) -> bool:
        return self.broken_id is None


class AuditRepository:
    """Appends to and verifies the chain.

    What is appended is sealed last in a unit of work (:meth:`seal`). The chain has one end, so
    nobody else can seal between that and the commit. If it were sealed earlier, a unit that then
    waited for a row would hold up everybody, and would wait for ever if the holder of that row
    wanted to seal next.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._noted: list[AuditEntry] = []

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
    ) -> None:
        """Note one entry, to be sealed; documents are kept as their hashes."""
        self._noted.append(
            AuditEntry(
                actor=actor,
                action=action,
                resource=resource,
                before_hash=None if before is None else hash_document(before),
                after_hash=None if after is None else hash_document(after),
                reason=reason,
                request_id=request_id,
            )
        )

    @contextmanager
    def dropped_on_error(self) -> Iterator[None]:
        """Forget what the block notes if it fails, because then it did not happen."""
        count = len(self._noted)
        try:
            yield
        except BaseException:
            del self._noted[count:]
            raise

    def seal(self) -> None:
        """Put what was noted at the end of the chain. All else has been written."""
        noted, self._noted = self._noted, []
        if noted and self._session.get_bind().dialect.name == "postgresql":
            self._session.execute(sa.select(sa.func.pg_advisory_xact_lock(CHAIN_LOCK)))
        for entry in noted:
            entry.previous_hash, entry.created_at = self._last_hash(), utc_now()
            entry.hash = _seal(entry)
            self._session.add(entry)
            self._session.flush()

    def list_page(self, page: PageRequest, *, resource: str | None = None) -> Page[AuditEntry]:
        """Entries, newest first."""
        query = sa.select(AuditEntry)
        if resource is not None:
            query = query.where(AuditEntry.resource == resource)
        return fetch_page(self._session, query, AuditEntry.id, page)

    def verify(self, *, since: int = 0) -> AuditVerdict:
        """Follow the chain from its beginning, or from entry ``since`` on.

        The seal of that entry is checked, but not its place in the chain.
        """
        query = sa.select(AuditEntry).where(AuditEntry.id >= since).order_by(AuditEntry.id)
        previous: str | None = GENESIS if since <= 0 else None
        num_entries = 0
        rows = self._session.scalars(query.execution_options(yield_per=READ_AT_ONCE))
        with closing(rows):
            for entry in rows:
                num_entries += 1
                why = _why_broken(entry, previous)
                if why is not None:
                    return AuditVerdict(num_entries=num_entries, broken_id=entry.id, reason=why)
                previous = entry.hash
                self._session.expunge(entry)
        return AuditVerdict(num_entries=num_entries, last_hash=previous or GENESIS)

    def has(self, entry_hash: str) -> bool:
        """Whether an entry of this hash is there."""
        query = sa.select(AuditEntry.id).where(AuditEntry.hash == entry_hash)
        return self._session.scalars(query).one_or_none() is not None

    def _last_hash(self) -> str:
        query = sa.select(AuditEntry.hash).order_by(AuditEntry.id.desc()).limit(1)
        return self._session.scalars(query).one_or_none() or GENESIS


def _why_broken(entry: AuditEntry, previous: str | None) -> str | None:
    """Why an entry does not continue the chain; None if it does."""
    if entry.hash != _seal(entry):
        return "it was altered: its hash is not that of what it says"
    if previous is not None and entry.previous_hash != previous:
        return "an entry before it is missing or was put in: it does not follow the one before it"
    return None


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
