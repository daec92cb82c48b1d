"""Keys and audit."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

from pydantic import AwareDatetime, BeforeValidator, Field, field_validator

from api.schemas.base import Body, View


def _check_text(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("must be a text, as in 2030-01-01T00:00:00Z")
    return value


class Scope(StrEnum):
    """What a key may do. ``tune`` and ``apply`` include ``read``; ``admin`` includes all."""

    READ = "read"
    TUNE = "tune"
    APPLY = "apply"
    ADMIN = "admin"

    @property
    def granted(self) -> frozenset[Scope]:
        """Every scope a key with this one has."""
        if self is Scope.ADMIN:
            return frozenset(Scope)
        return frozenset({self, Scope.READ})


class ApiKeyCreate(Body):
    """A new key."""

    name: str = Field(min_length=1, max_length=120)
    scopes: list[Scope] = Field(min_length=1, max_length=len(Scope))
    expires_at: Annotated[AwareDatetime, BeforeValidator(_check_text)] | None = None

    @field_validator("expires_at")
    @classmethod
    def _is_in_a_year(cls, value: datetime | None) -> datetime | None:
        try:
            return value and value.astimezone(UTC)
        except OverflowError as error:
            raise ValueError(f"{value} is beyond the years 1 to 9999 in UTC") from error


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
