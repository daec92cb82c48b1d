"""Bearer keys and their scopes."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

from fastapi import Depends, Header, Request, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.schemas.access import Scope
from api.web.errors import ApiError
from store import Database
from store.models import ApiKey
from store.models.base import utc_now

# A write per request would make every read wait for the write lock.
LAST_USE_RESOLUTION = timedelta(minutes=1)
BEARER = HTTPBearer(auto_error=False, description="A key made by POST /v1/api-keys")


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks, as the audit names them, and the trace id of the request."""

    actor: str
    scopes: frozenset[Scope]
    trace_id: str


def require(scope: Scope) -> Any:
    """A dependency that yields the :class:`Caller` and refuses one without ``scope``.

    Raises:
        ApiError: 403 naming the missing scope.
    """

    async def find_caller(
        request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Security(BEARER)]
    ) -> Caller:
        key: ApiKey | None = getattr(request.state, "key", None)
        assert key is not None, "the gate lets nobody in without a key"
        scopes = frozenset(s for name in key.scopes for s in Scope(name).granted)
        if scope not in scopes:
            raise ApiError(
                403,
                "missing_scope",
                f"this needs a key with scope '{scope}'; key {key.prefix}... has "
                f"{', '.join(key.scopes)}",
                required_scope=scope,
            )
        return Caller(actor=key.id, scopes=scopes, trace_id=request.state.trace_id)

    return Depends(find_caller)


# What an engine proves its identity with, beside the key of whoever runs it.
EngineCredential = Annotated[
    str | None,
    Header(
        alias="Gearshift-Engine-Credential",
        max_length=200,
        description="The engine's own credential, from the answer to its registration",
    ),
]


class KeyCheck:
    """Knows callers by their key, before anything of their request is read."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def admit(self, request: Request) -> str:
        """Keep the caller's key for the route and return its id.

        Raises:
            ApiError: 401 without a valid key.
        """
        credentials = await BEARER(request)
        request.state.key = await run_in_threadpool(_authenticate, self._database, credentials)
        return str(request.state.key.id)


def new_secret() -> str:
    """A fresh key secret of 256 random bits."""
    return f"gs_{secrets.token_urlsafe(32)}"


def ensure_first_key(
    database: Database, admin_secret: str | None, announce: Callable[[str], None]
) -> bool:
    """See that an admin key exists: the configured one, else a new one, announced once.

    It is announced before it is stored, so that none is kept which could not be shown; says
    whether there was one to announce.
    """
    with database.begin() as uow:
        if admin_secret is not None:
            if uow.keys.find_by_secret(admin_secret) is None:
                uow.keys.add(name="admin (from settings)", secret=admin_secret, scopes=["admin"])
            return False
        if uow.keys.count():
            return False
        secret = new_secret()
        uow.keys.add(name="admin (first start)", secret=secret, scopes=["admin"])
        announce(secret)
    return True


def _authenticate(database: Database, credentials: HTTPAuthorizationCredentials | None) -> ApiKey:
    if credentials is None:
        raise _unauthorized("missing_key", "send 'Authorization: Bearer KEY'", None)
    with database.read() as uow:
        key = uow.keys.find_by_secret(credentials.credentials)
    now = utc_now()
    if key is None:
        raise _unauthorized("unknown_key", "this key is not known", "invalid_token")
    if key.revoked_at is not None:
        raise _unauthorized("revoked_key", f"key {key.prefix}... was revoked", "invalid_token")
    if key.expires_at is not None and key.expires_at <= now:
        raise _unauthorized(
            "expired_key", f"key {key.prefix}... expired at {key.expires_at}", "invalid_token"
        )
    if key.last_used_at is None or now - key.last_used_at > LAST_USE_RESOLUTION:
        with database.begin() as uow:
            uow.keys.get(key.id).last_used_at = now
    return key


def _unauthorized(code: str, detail: str, error: str | None) -> ApiError:
    challenge = 'Bearer realm="gearshift"' + (f', error="{error}"' if error else "")
    return ApiError(401, code, detail, headers={"WWW-Authenticate": challenge})
