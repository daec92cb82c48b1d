"""Who may call an engine's server: a key for all of it, another for its knobs."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from fastapi import Request

from engine.server.errors import KNOB_PREFIX, ApiError

WAY_OUT = "start it with a key in GEARSHIFT_KNOB_KEY or GEARSHIFT_ENGINE_KEY, or on 127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class ServerKeys:
    """The keys of one server.

    Callers need ``api`` for everything but the open paths. If ``knobs`` is given, the knob plane
    needs that key instead. A server without either key has no knob plane, unless ``is_local``: it
    is reached from its own machine only.
    """

    api: str | None = None
    knobs: str | None = None
    is_local: bool = True

    @property
    def has_knobs(self) -> bool:
        """Whether anybody may use the knob plane."""
        return self.is_local or self.knob_key is not None

    @property
    def knob_key(self) -> str | None:
        """What the knob plane asks for."""
        return self.api if self.knobs is None else self.knobs

    def key_of(self, path: str) -> str | None:
        """What ``path`` asks for."""
        return self.knob_key if is_knob(path) else self.api

    async def admit(self, request: Request) -> str:
        """The name under which the caller's requests are counted.

        Raises:
            ApiError: 401 without the right key, 403 where the knob plane is closed.
        """
        path = request.scope["path"]
        if is_knob(path) and not self.has_knobs:
            raise ApiError(
                403,
                f"without a key nobody may read or change this engine's knobs; {WAY_OUT}",
                code="knobs_closed",
            )
        key = self.key_of(path)
        if key is None:
            return "without a key"
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        is_bearer = scheme.lower() == "bearer"
        # Compared in constant time: the answer must not tell how much of a key was right.
        if not hmac.compare_digest(given.strip().encode(), key.encode()) or not is_bearer:
            raise ApiError(
                401,
                "a valid bearer key is required",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return "the key of the knobs" if is_knob(path) else "the key"


def is_knob(path: str) -> bool:
    """Whether ``path`` belongs to the knob plane."""
    return path == KNOB_PREFIX or path.startswith(f"{KNOB_PREFIX}/")
