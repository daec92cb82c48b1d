"""Who may do what, and who did it: the operations on keys and on the audit."""

from __future__ import annotations

from api.clients.calls import Body, Call, create, delete, get, get_all, operation
from api.schemas.access import (
    ApiKeyCreated,
    ApiKeyRotated,
    ApiKeyView,
    AuditVerdictView,
    AuditView,
)

KEYS = "/v1/api-keys"


class AccessOperations:
    """What :class:`api.clients.operations.Operations` has for administrators."""

    @operation
    def list_audit(self, *, resource: str | None = None) -> Call[list[AuditView]]:
        """Who did what, of one resource or of all."""
        return get_all("/v1/audit", AuditView, resource=resource)

    @operation
    def verify_audit(
        self, *, since: int | None = None, head: str | None = None
    ) -> Call[AuditVerdictView]:
        """Whether the audit chain is whole."""
        return get("/v1/audit:verify", AuditVerdictView, since=since, head=head)

    @operation
    def create_api_key(self, body: Body, *, key: str | None = None) -> Call[ApiKeyCreated]:
        """Make an API key (``api.schemas.access.ApiKeyCreate``); its secret is told once."""
        return create(KEYS, ApiKeyCreated, body, key=key)

    @operation
    def list_api_keys(self) -> Call[list[ApiKeyView]]:
        """API keys, without their secrets."""
        return get_all(KEYS, ApiKeyView)

    @operation
    def rotate_api_key(
        self, key_id: str, body: Body | None = None, *, key: str | None = None
    ) -> Call[ApiKeyRotated]:
        """Make a key in place of another (``api.schemas.access.ApiKeyRotate``)."""
        return create(f"{KEYS}/{key_id}:rotate", ApiKeyRotated, body or {}, key=key)

    @operation
    def revoke_api_key(self, key_id: str) -> Call[None]:
        """Take a key out of use."""
        return delete(f"{KEYS}/{key_id}")
