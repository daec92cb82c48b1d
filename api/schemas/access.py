"""Keys and audit."""

from __future__ import annotations

from datetime import datetime

from pydantic import AwareDatetime, Field

from api.schemas.base import Body, View
from api.web.auth import Scope


class ApiKeyCreate(Body):
    """A new key."""

    name: str = Field(min_length=1, max_length=120)
    scopes: list[Scope] = Field(min_length=1)
    expires_at: AwareDatetime | None = None


class ApiKeyView(View):
    """A key without its secret."""

    id: str
    name: str
    prefix: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


class ApiKeyCreated(ApiKeyView):
    """A new key. ``secret`` is shown this once; a repeated Idempotency-Key does not show it."""

    secret: str | None = None


class AuditView(View):
    """One audit entry."""

    id: int
    actor: str
    action: str
    resource: str
    before_hash: str | None
    after_hash: str | None
    reason: str
    request_id: str | None
    previous_hash: str
    hash: str
    created_at: datetime
