"""API keys by the hash of their secret."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from store.errors import NotFoundError
from store.models import ApiKey
from store.paging import Page, PageRequest, fetch_page
from store.rows import find_row

PREFIX_LENGTH = 10
# Names the PostgreSQL advisory lock of who makes the first key; any fixed number would do.
FIRST_LOCK = 0x6765617274


def hash_secret(secret: str) -> str:
    """SHA-256 of a key's secret, hex."""
    return hashlib.sha256(secret.encode()).hexdigest()


class KeyRepository:
    """Reads and writes API keys; a secret is never kept."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(
        self, *, name: str, secret: str, scopes: list[str], expires_at: datetime | None = None
    ) -> ApiKey:
        row = ApiKey(
            name=name,
            prefix=secret[:PREFIX_LENGTH],
            hash=hash_secret(secret),
            scopes=scopes,
            expires_at=expires_at,
        )
        self._session.add(row)
        self._session.flush()
        return row

    def get(self, key_id: str, *, for_update: bool = False) -> ApiKey:
        """The key; ``for_update`` holds its row until the unit of work ends.

        Raises:
            NotFoundError: there is none.
        """
        row = find_row(self._session, ApiKey, key_id, for_update=for_update)
        if row is None:
            raise NotFoundError("API key", key_id)
        return row

    def find_by_secret(self, secret: str) -> ApiKey | None:
        query = sa.select(ApiKey).where(ApiKey.hash == hash_secret(secret))
        return self._session.scalars(query).one_or_none()

    def hold_first(self) -> None:
        """Lock others out of making a first key until the unit of work ends: services that start at
        the same time would each see none."""
        if self._session.get_bind().dialect.name == "postgresql":
            self._session.execute(sa.select(sa.func.pg_advisory_xact_lock(FIRST_LOCK)))

    def count(self) -> int:
        """Keys of any state."""
        return self._session.scalar(sa.select(sa.func.count()).select_from(ApiKey)) or 0

    def list_all(self, *, for_update: bool = False) -> Sequence[ApiKey]:
        """Every key, in order of creation; ``for_update`` holds their rows until the unit of work
        ends."""
        query = sa.select(ApiKey).order_by(ApiKey.id)
        return self._session.scalars(query.with_for_update() if for_update else query).all()

    def list_page(self, page: PageRequest) -> Page[ApiKey]:
        """Keys in order of creation."""
        query = sa.select(ApiKey)
        return fetch_page(self._session, query, ApiKey.id, page, newest_first=False)
