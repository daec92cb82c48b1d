"""API keys: make, rotate and revoke."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from api.schemas.access import ApiKeyCreate, ApiKeyRotate, Scope
from api.services.audit import record
from api.web.auth import Caller, new_secret
from api.web.errors import ApiError, FieldError
from store import UnitOfWork
from store.errors import ConflictError
from store.models import ApiKey
from store.models.base import Json, utc_now


def create(uow: UnitOfWork, body: ApiKeyCreate, *, caller: Caller) -> tuple[ApiKey, str]:
    """A new key and its secret, which nobody can read again.

    Raises:
        ApiError: 422, it would have ended already and would never open.
    """
    if body.expires_at is not None and body.expires_at <= utc_now():
        ended = f"{body.expires_at} has passed, so the key would never open; name a later time"
        errors = [FieldError(pointer="/expires_at", detail=ended)]
        raise ApiError(422, "invalid_request", "the key was not made", errors=errors)
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
    # Held all at once: of two administrators who revoke each other's key, one comes second.
    every = uow.keys.list_all(for_update=True)
    key = uow.keys.get(key_id)
    if key.revoked_at is None:
        _require_another_admin(every, key)
        key.revoked_at = utc_now()
        record(uow, caller, "key.revoke", f"api-keys/{key.id}", reason=key.name)


def rotate(
    uow: UnitOfWork, key_id: str, body: ApiKeyRotate, *, caller: Caller
) -> tuple[ApiKey, str]:
    """A new key of the same name and scopes, and its secret; the old one expires after the overlap.

    Raises:
        NotFoundError: there is no such key.
        ConflictError: it is revoked or has expired, so that nothing is to be replaced; or the new
            one would have ended already, and nobody could go on with it.
    """
    old, now = uow.keys.get(key_id, for_update=True), utc_now()
    if not old.is_valid(now):
        state = "revoked" if old.revoked_at is not None else "expired"
        raise ConflictError(f"key {old.id} ({old.name}) is {state}; make a new one instead")
    if body.expires_at is not None and body.expires_at <= now:
        raise ConflictError(
            f"the key in place of {old.id} ({old.name}) would have ended at {body.expires_at}; "
            "name a later expires_at, or none"
        )
    secret = new_secret()
    expires_at = old.expires_at if body.expires_at is None else body.expires_at
    key = uow.keys.add(name=old.name, secret=secret, scopes=old.scopes, expires_at=expires_at)
    end = now + timedelta(seconds=body.overlap_s)
    old.expires_at = end if old.expires_at is None else min(end, old.expires_at)
    after: Json = {"replaced_by": key.id, "expires_at": old.expires_at.isoformat()}
    record(uow, caller, "key.rotate", f"api-keys/{old.id}", reason=old.name, after=after)
    return key, secret


def _require_another_admin(every: Sequence[ApiKey], key: ApiKey) -> None:
    now = utc_now()
    admins = [k.id for k in every if Scope.ADMIN in k.scopes and k.is_valid(now)]
    if admins == [key.id]:
        raise ConflictError(
            f"key {key.id} ({key.name}) is the last valid one with scope admin: make another first "
            "(gearshift keys create NAME --scope admin, or POST /v1/api-keys)"
        )
