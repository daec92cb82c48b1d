"""Tables of access: API keys, idempotency keys, the audit chain."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from store.models.base import Base, Json, JsonList, id_column, utc_now


class ApiKey(Base):
    """A bearer key: only its SHA-256 and a visible prefix are kept.

    The secret has 256 random bits, so a plain hash cannot be searched backwards.
    """

    __tablename__ = "api_keys"

    id: Mapped[str] = id_column("key")
    name: Mapped[str] = mapped_column(sa.String(120))
    prefix: Mapped[str] = mapped_column(sa.String(16))
    hash: Mapped[str] = mapped_column(sa.String(64), unique=True)
    scopes: Mapped[JsonList]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]

    def is_valid(self, now: datetime) -> bool:
        """Whether it opens anything: neither revoked nor expired by ``now``."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class IdempotencyKey(Base):
    """The first answer to a creating POST, kept under the caller's key."""

    __tablename__ = "idempotency_keys"

    actor: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    key: Mapped[str] = mapped_column(sa.String(200), primary_key=True)
    request_hash: Mapped[str] = mapped_column(sa.String(64))
    status: Mapped[int]
    headers: Mapped[Json]
    body: Mapped[Json]
    created_at: Mapped[datetime] = mapped_column(default=utc_now, index=True)


class AuditEntry(Base):
    """Who changed what and why. Append-only: triggers refuse UPDATE and DELETE.

    ``hash`` covers the entry and ``previous_hash``, so a missing or altered entry breaks the chain.
    """

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(sa.Integer, primary_key=True)
    actor: Mapped[str] = mapped_column(sa.String(40))
    action: Mapped[str] = mapped_column(sa.String(60))
    resource: Mapped[str] = mapped_column(sa.String(200), index=True)
    before_hash: Mapped[str | None] = mapped_column(sa.String(64))
    after_hash: Mapped[str | None] = mapped_column(sa.String(64))
    reason: Mapped[str] = mapped_column(sa.Text)
    request_id: Mapped[str | None] = mapped_column(sa.String(64))
    previous_hash: Mapped[str] = mapped_column(sa.String(64))
    hash: Mapped[str] = mapped_column(sa.String(64), unique=True)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
