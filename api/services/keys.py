"""API keys: make and revoke."""

from __future__ import annotations

from api.schemas.access import ApiKeyCreate
from api.services.audit import record
from api.web.auth import Caller, new_secret
from store import UnitOfWork
from store.models import ApiKey
from store.models.base import Json, utc_now


def create(uow: UnitOfWork, body: ApiKeyCreate, *, caller: Caller) -> tuple[ApiKey, str]:
    """A new key and its secret, which nobody can read again."""
    secret = new_secret()
    scopes = sorted(scope.value for scope in set(body.scopes))
    key = uow.keys.add(name=body.name, secret=secret, scopes=scopes, expires_at=body.expires_at)
    after: Json = {"name": body.name, "scopes": scopes}
    record(uow, caller, "key.create", f"api-keys/{key.id}", reason=body.name, after=after)
    return key, secret


def revoke(uow: UnitOfWork, key_id: str, *, caller: Caller) -> None:
    """Make a key useless; its row stays for the audit."""
    key = uow.keys.get(key_id)
    if key.revoked_at is None:
        key.revoked_at = utc_now()
        record(uow, caller, "key.revoke", f"api-keys/{key.id}", reason=key.name)
