"""What a server behind HTTP says of itself: its model, its system, its settings."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from engine.server.pace import PACED_HEADER
from engine.spec.errors import EngineError
from engine.spec.settings import Settings
from tuner.load.urls import full_url, is_secure, key_headers
from tuner.spec.errors import LoadError

CONNECT_TIMEOUT_S = 10.0
# Systems whose ``owned_by`` is their own name; a paced engine of ours says more after a comma.
SAYING_SYSTEMS = ("vllm", "sglang", "gearshift")
# The parts of a policy document that say how the engine runs.
SETTINGS_PARTS = ("plan", "shift", "caps", "scheduler", "mode")


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """The model that ``/v1/models`` lists first; ``max_model_len`` is None if the server does not
    tell.

    ``paced_as`` is the hardware that an engine of ours without ranks imitates, else None.
    ``owner`` is what serves, in its own words; empty: it does not say.
    """

    name: str
    max_model_len: int | None
    paced_as: str | None = None
    owner: str = ""

    @property
    def system(self) -> str | None:
        """The serving system that it says it is; None if it names none that is known."""
        word = self.owner.partition(",")[0]
        return word if word in SAYING_SYSTEMS else None


def get_served_model(url: str, *, api_key: str | None = None) -> ServedModel:
    """The model that the server at ``url`` serves.

    Raises:
        LoadError: nothing answers there, or not as an OpenAI-compatible server; or it asks for
            another key.
    """
    try:
        answer = httpx.get(
            f"{base_url(url)}/models",
            headers=key_headers(api_key),
            timeout=CONNECT_TIMEOUT_S,
            verify=is_secure(base_url(url)),
        )
        answer.raise_for_status()
        card = answer.json()["data"][0]
        return ServedModel(
            name=str(card["id"]),
            max_model_len=card.get("max_model_len"),
            paced_as=answer.headers.get(PACED_HEADER),
            owner=str(card.get("owned_by") or ""),
        )
    except httpx.HTTPStatusError as error:
        raise LoadError(f"{url}: {_refusal(error.response, api_key)}") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise LoadError(f"{url}: no answer to GET /v1/models ({error})") from error
    except (ValueError, LookupError, TypeError) as error:
        raise LoadError(f"{url}: GET /v1/models lists no model; is it the right server?") from error


def _refusal(answer: httpx.Response, api_key: str | None) -> str:
    """Why ``/v1/models`` was not told, with the way out."""
    said = f"GET /v1/models is answered by {answer.status_code} {answer.reason_phrase}"
    if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        lacks = "the key that was given is not its" if api_key else "it asks for a key"
        return f"{said}: {lacks}; give its key by GEARSHIFT_ENGINE_KEY or --api-key-file FILE"
    return f"{said}; is it the right server?"


def find_settings(url: str, *, api_key: str | None = None) -> Settings | None:
    """The settings that an engine of ours runs with; None: another server, or it does not tell."""
    try:
        answer = httpx.get(
            f"{base_url(url)}/engine/policy",
            headers=key_headers(api_key),
            timeout=CONNECT_TIMEOUT_S,
        )
        answer.raise_for_status()
        document = answer.json()
        parts = {part: document[part] for part in SETTINGS_PARTS}
        return Settings.from_json({**parts, "admission": document.get("admission")})
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError, EngineError):
        return None


def base_url(url: str) -> str:
    """``url`` with a scheme and ending in ``/v1``, with or without them at first."""
    return full_url(url).removesuffix("/v1") + "/v1"
