"""Bearer keys and their scopes."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import Depends, Header, Request, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param

from api.schemas.access import Scope
from api.web.errors import ApiError
from engine.server.headers import find_header
from store import Database
from store.keys import hash_secret
from store.models import ApiKey
from store.models.base import utc_now
from store.outage import is_outage
from store.watched import Change

# A write per request would make every read wait for the write lock.
LAST_USE_RESOLUTION = timedelta(minutes=1)
# A service of a thousand engines would read the same key 250 times a second.
KEEP_S = 0.5
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
        return caller_with(key, scope, request.state.trace_id)

    return Depends(find_caller)


def caller_with(key: ApiKey, scope: Scope, trace_id: str) -> Caller:
    """Who asks with ``key``.

    Raises:
        ApiError: 403 naming ``scope``, where the key does not have it.
    """
    scopes = scopes_of(key)
    if scope not in scopes:
        raise ApiError(
            403,
            "missing_scope",
            f"this needs a key with scope '{scope}'; key {key.prefix}... has "
            f"{', '.join(key.scopes)}",
            required_scope=scope,
        )
    return Caller(actor=key.id, scopes=scopes, trace_id=trace_id)


def scopes_of(key: ApiKey) -> frozenset[Scope]:
    """Every scope that ``key`` has, by name or because another one includes it."""
    return _granted(tuple(key.scopes))


@lru_cache(maxsize=64)
def _granted(names: tuple[str, ...]) -> frozenset[Scope]:
    return frozenset(scope for name in names for scope in Scope(name).granted)


CREDENTIAL_HEADER = b"gearshift-engine-credential"
MAX_CREDENTIAL = 200
# What an engine proves its identity with, beside the key of whoever runs it.
EngineCredential = Annotated[
    str | None,
    Header(
        alias="Gearshift-Engine-Credential",
        max_length=MAX_CREDENTIAL,
        description="The engine's own credential, from the answer to its registration",
    ),
]


class KeyCheck:
    """Knows callers by their key, before anything of their request is read.

    A key that was read is good for :data:`KEEP_S`, then it is read again. A change of keys by this
    process counts at once, one by another process within a second.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._kept: dict[str, tuple[ApiKey, float]] = {}
        database.on_commit(Change.KEYS, self._forget)

    async def admit(self, request: Request) -> str:
        """Keep the caller's key for the route and return its id.

        Raises:
            ApiError: 401 without a valid key.
        """
        authorization = find_header(request.scope, b"authorization")
        scheme, secret = get_authorization_scheme_param(authorization)
        if scheme.lower() != "bearer" or not secret:
            raise _unauthorized("missing_key", "send 'Authorization: Bearer KEY'", None)
        key = await self.find(secret)
        request.scope["state"]["key"] = key
        return key.id

    async def find(self, secret: str) -> ApiKey:
        """The key whose secret this is.

        Raises:
            ApiError: 401, not a valid one.
        """
        kept, digest, now_s = self._kept, hash_secret(secret), time.monotonic()
        key, until_s = kept.get(digest, (None, 0.0))
        if key is None or now_s >= until_s:
            if key is not None:  # while this request reads it again, others go on with it
                kept[digest] = key, now_s + KEEP_S
            try:
                key = await run_in_threadpool(_read, self._database, secret)
            except BaseException:
                kept.pop(digest, None)
                raise
            # If keys have changed meanwhile, this is forgotten with all that was kept.
            kept[digest] = key, now_s + KEEP_S
        _require_valid(key)
        return key

    def _forget(self) -> None:
        self._kept = {}


def new_secret() -> str:
    """A fresh key secret of 256 random bits."""
    return f"gs_{secrets.token_urlsafe(32)}"


def keep_configured_key(database: Database, secret: str) -> None:
    """See that the admin key of the settings opens."""
    with database.begin() as uow:
        uow.keys.hold_first()
        if uow.keys.find_by_secret(secret) is None:
            uow.keys.add(name="admin (from settings)", secret=secret, scopes=["admin"])


def ensure_first_key(
    database: Database, admin_secret: str | None, announce: Callable[[str], None]
) -> bool:
    """See that an admin key exists: the configured one, else a new one, announced once.

    It is announced before it is stored, so that none is kept which could not be shown; says
    whether there was one to announce.
    """
    if admin_secret is not None:
        keep_configured_key(database, admin_secret)
        return False
    with database.begin() as uow:
        uow.keys.hold_first()
        if uow.keys.count():
            return False
        secret = new_secret()
        uow.keys.add(name="admin (first start)", secret=secret, scopes=["admin"])
        announce(secret)
    return True


def _read(database: Database, secret: str) -> ApiKey:
    """The key as it is now; its use is noted once a minute."""
    with database.read() as uow:
        key = uow.keys.find_by_secret(secret)
    if key is None:
        raise _unauthorized("unknown_key", "this key is not known", "invalid_token")
    _require_valid(key)
    _note_use(database, key)
    return key


def _note_use(database: Database, key: ApiKey) -> None:
    now = utc_now()
    if key.last_used_at is not None and now - key.last_used_at <= LAST_USE_RESOLUTION:
        return
    try:
        with database.begin() as uow:
            uow.keys.get(key.id).last_used_at = now
    except sa.exc.SQLAlchemyError as error:
        if not is_outage(error):
            raise
        # A disk that is full can be read, and whoever only reads shall be let in.


def _require_valid(key: ApiKey) -> None:
    if key.revoked_at is not None:
        raise _unauthorized("revoked_key", f"key {key.prefix}... was revoked", "invalid_token")
    if key.expires_at is not None and key.expires_at <= utc_now():
        raise _unauthorized(
            "expired_key", f"key {key.prefix}... expired at {key.expires_at}", "invalid_token"
        )


def _unauthorized(code: str, detail: str, error: str | None) -> ApiError:
    challenge = 'Bearer realm="gearshift"' + (f', error="{error}"' if error else "")
    return ApiError(401, code, detail, headers={"WWW-Authenticate": challenge})
