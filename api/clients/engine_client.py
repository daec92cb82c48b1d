"""A small client of one engine's knob plane."""

from __future__ import annotations

from typing import Any

import httpx

from api.clients.errors import ClientError
from tuner.load.urls import full_url, key_headers

Json = dict[str, Any]
POLICY = "/v1/engine/policy"
# A change of plan is answered once its ranks have started.
TIMEOUT_S = 300.0


class EngineClient:
    """Reads and changes the policy of the engine at ``url``. Use from one thread.

    Every method raises :class:`ClientError` for a refusal and ``httpx.HTTPError`` where the engine
    cannot be reached.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        self._url = full_url(url).removesuffix("/v1")
        self._options: Json = {"headers": key_headers(api_key), "timeout": TIMEOUT_S}

    def get_policy(self) -> tuple[Json, str]:
        """The policy in force, and its entity tag."""
        answer = self._send("GET")
        policy: Json = answer.json()
        return policy, answer.headers["ETag"]

    def patch_policy(self, patch: Json, *, etag: str, is_dry_run: bool = False) -> Json:
        """Merge ``patch`` into the policy that has ``etag``, or only say what that would do."""
        params = {"dry_run": "true"} if is_dry_run else {}
        changed: Json = self._send("PATCH", patch, params=params, etag=etag).json()
        return changed

    def _send(
        self,
        method: str,
        patch: Json | None = None,
        *,
        params: dict[str, str] | None = None,
        etag: str | None = None,
    ) -> httpx.Response:
        headers = self._options["headers"] | ({} if etag is None else {"If-Match": etag})
        answer = httpx.request(
            method,
            f"{self._url}{POLICY}",
            json=patch,
            params=params,
            headers=headers,
            timeout=self._options["timeout"],
        )
        if answer.is_error:
            raise ClientError.of(answer)
        return answer
