"""Who an engine is: its name, and the credential it proves that with.

The rule of names: a name belongs to the engine that registered it, while that engine lives. Who
shows its credential is that engine. Without it a name is free again once its engine has ended or
been silent for a control window; whoever takes it then gets a new credential, and the old one is
void. Then it may also be called ended by whoever has scope apply.
"""

from __future__ import annotations

import hmac
import secrets
from datetime import timedelta

from api.web.errors import ApiError
from api.web.settings import ServiceSettings
from store.engines import Sender
from store.keys import hash_secret
from store.models import EngineRow
from store.models.base import utc_now


def is_alive(row: EngineRow, settings: ServiceSettings) -> bool:
    """Whether its heartbeats are younger than a control window."""
    seen = row.last_heartbeat_at
    return seen is not None and utc_now() - seen < timedelta(seconds=settings.control_window_s)


def proves(row: EngineRow | Sender, credential: str | None) -> bool:
    """Whether ``credential`` is that of the engine; one that has none proves nothing."""
    return is_proof(row.credential_hash, credential)


def is_proof(credential_hash: str | None, credential: str | None) -> bool:
    """Whether ``credential`` is the one of that hash; None proves nothing."""
    if credential_hash is None or credential is None:
        return False
    return hmac.compare_digest(credential_hash, hash_secret(credential))


def require_own(row: EngineRow | Sender, credential: str | None) -> None:
    """Refuse whoever speaks for an engine without its credential.

    Raises:
        ApiError: 403, none or another one.
    """
    if row.credential_hash is not None and not proves(row, credential):
        raise ApiError(
            403,
            "not_this_engine",
            f"only engine {row.name!r} itself may do this: send the credential of its registration "
            "as Gearshift-Engine-Credential",
        )


def require_name(row: EngineRow, credential: str | None, settings: ServiceSettings) -> None:
    """Refuse a name that belongs to another engine.

    Raises:
        ApiError: 409, a live engine has it.
    """
    if is_alive(row, settings) and not proves(row, credential):
        raise ApiError(
            409,
            "name_in_use",
            f"name {row.name!r} is that of live engine {row.id}; choose another name (--name), or "
            f"wait until it has ended or been silent for {settings.control_window_s:g} s",
        )


def issue(row: EngineRow) -> str:
    """A fresh credential of the engine, of 256 random bits; only its hash is kept."""
    credential = f"ge_{secrets.token_urlsafe(32)}"
    row.credential_hash = hash_secret(credential)
    return credential
