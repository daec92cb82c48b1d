"""Keys and audit."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field

from api.schemas.base import Body, View, shown
from api.schemas.examples import access
from api.schemas.plain import Whole


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


def _in_a_year(value: datetime | None) -> datetime | None:
    try:
        return value and value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{value} is beyond the years 1 to 9999 in UTC") from error


End = Annotated[AwareDatetime, BeforeValidator(_check_text), AfterValidator(_in_a_year)]
MAX_OVERLAP_S = 30 * 86_400


class ApiKeyCreate(Body):
    """A new key."""

    model_config = shown(access.CREATE)

    name: str = Field(min_length=1, max_length=120)
    scopes: list[Scope] = Field(min_length=1, max_length=len(Scope), fail_fast=True)
    expires_at: End | None = None


class ApiKeyRotate(Body):
    """A new secret in place of an old one."""

    model_config = shown(access.ROTATE)

    overlap_s: Whole = Field(
        default=86_400, ge=0, le=MAX_OVERLAP_S, description="The old secret opens so long still"
    )
    expires_at: End | None = Field(
        default=None, description="End of the new one; null: that of the old one"
    )


class ApiKeyView(View):
    """A key without its secret."""

    model_config = shown(access.KEY)

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

    model_config = shown(access.CREATED)

    secret: str | None = None


class ApiKeyRotated(ApiKeyCreated):
    """A key in place of another."""

    model_config = shown(access.ROTATED)

    replaces: str = Field(description="The key it was made in place of")


class AuditVerdictView(View):
    """Whether the audit chain is whole."""

    model_config = shown(access.VERDICT)

    is_whole: bool
    num_entries: int = Field(description="Entries read, up to the first broken one")
    last_hash: str | None = Field(
        description="Of the newest entry; note it elsewhere, and ask for it as `head` later"
    )
    broken_id: int | None = Field(description="The first entry that breaks the chain")
    reason: str | None
    has_head: bool | None = Field(description="Whether the `head` asked for is still there")


class AuditView(View):
    """One audit entry."""

    model_config = shown(access.ENTRY)

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
