"""Addresses of servers as people write them, and what a client needs to speak with them."""

from __future__ import annotations


def full_url(address: str) -> str:
    """``address`` without a slash at its end; HTTP where it names no scheme, as in
    ``localhost:8000``."""
    url = address.strip().rstrip("/")
    return url if "://" in url else f"http://{url}"


def is_secure(url: str) -> bool:
    """Whether certificates must be loaded to speak with ``url``, which takes tens of milliseconds
    of a processor for each client."""
    return url.startswith("https://")


def key_headers(api_key: str | None) -> dict[str, str]:
    """The headers of a request to a server that asks for a key; none if ``api_key`` is None or
    empty."""
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}
