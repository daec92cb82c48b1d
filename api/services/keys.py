"""API keys: make and revoke."""

from __future__ import annotations

from api.schemas.access import ApiKeyCreate, Scope
from api.services.audit import record
from api.web.auth import Caller, new_secret
from store import UnitOfWork
from store.errors import ConflictError
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
    """Make a key useless; its row stays for the audit.

    Raises:
        NotFoundError: there is no such key.
        ConflictError: it is the last valid admin key, without which nobody could make another.
    """
    key = uow.keys.get(key_id)
    if key.revoked_at is None:
        _require_another_admin(uow, key)
        key.revoked_at = utc_now()
        record(uow, caller, "key.revoke", f"api-keys/{key.id}", reason=key.name)


def _require_another_admin(uow: UnitOfWork, key: ApiKey) -> None:
    now = utc_now()
    admins = [k.id for k in uow.keys.list_all() if Scope.ADMIN in k.scopes and k.is_valid(now)]
    if admins == [key.id]:
        raise ConflictError(
            f"key {key.id} ({key.name}) is the last valid one with scope admin: make another first "
            "(gearshift keys create NAME --scope admin, or POST /v1/api-keys)"
        )
