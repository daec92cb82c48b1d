"""First answers to creating POSTs, by the caller's key."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from store.models import IdempotencyKey


class IdempotencyRepository:
    """Keeps one answer per (actor, key)."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def find(self, *, actor: str, key: str) -> IdempotencyKey | None:
        return self._session.get(IdempotencyKey, (actor, key))

    def claim(self, row: IdempotencyKey) -> bool:
        """Take the key for this unit of work; False when another request holds it.

        On PostgreSQL the insert waits for a concurrent holder to commit or roll back.
        """
        try:
            with self._session.begin_nested():
                self._session.add(row)
        except sa.exc.IntegrityError:
            return False
        return True

    def prune(self, *, before: datetime) -> None:
        """Forget answers given before a time."""
        self._session.execute(sa.delete(IdempotencyKey).where(IdempotencyKey.created_at < before))
