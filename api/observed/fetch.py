"""Pages of servers that are not ours, fetched so that nothing of theirs can hurt the service.

An address is looked up, judged (:mod:`api.web.addresses`) and called as one: a name that leads
elsewhere a moment later leads nowhere. Redirects are not followed, proxies of the environment not
used, and nothing is taken apart that is longer than allowed or came later.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpcore

from api.web.addresses import Network, why_forbidden
from store.models import Sight

OK = 200
REDIRECTS = range(300, 400)
METRICS = "/metrics"


@dataclass(frozen=True, kw_only=True)
class FetchLimits:
    """How long a page may take and how long it may be, and where it may lie (empty: anywhere)."""

    timeout_s: float
    max_bytes: int
    networks: tuple[Network, ...] = ()


class FetchError(Exception):
    """Why there is no page."""

    def __init__(self, sight: Sight, detail: str) -> None:
        super().__init__(detail)
        self.sight = sight
        self.detail = detail


async def fetch(url: str, *, token: str | None, limits: FetchLimits) -> str:
    """The text at ``url``.

    Raises:
        FetchError: there is none, or not in time.
    """
    try:
        async with asyncio.timeout(limits.timeout_s):
            return await _get(url, token, limits)
    except TimeoutError as error:
        raise FetchError(
            Sight.TIMED_OUT, f"{url} gave no whole answer within {limits.timeout_s:g} s"
        ) from error
    except _ForbiddenError as error:
        raise FetchError(Sight.FORBIDDEN_ADDRESS, str(error)) from error
    # The last two tell of an address that was never one, as with letters that no name may have.
    except (httpcore.NetworkError, httpcore.ProtocolError, OSError, ValueError, TypeError) as error:
        raise FetchError(Sight.UNREACHABLE, f"{url}: {_said(error)}") from error


async def _get(url: str, token: str | None, limits: FetchLimits) -> str:
    headers = [("Accept", "text/plain"), ("Accept-Encoding", "identity")]
    if token is not None:
        headers.append(("Authorization", f"Bearer {token}"))
    secure = ssl.create_default_context() if urlsplit(url).scheme == "https" else None
    async with (
        httpcore.AsyncConnectionPool(
            ssl_context=secure, network_backend=_Guarded(limits.networks)
        ) as pool,
        pool.stream("GET", url, headers=headers) as answer,
    ):
        _check_status(url, answer)
        body = bytearray()
        async for piece in answer.aiter_stream():
            body += piece
            if len(body) > limits.max_bytes:
                raise FetchError(Sight.TOO_LARGE, f"{url} is longer than {limits.max_bytes} bytes")
    return body.decode(errors="replace")


def _check_status(url: str, answer: httpcore.Response) -> None:
    if answer.status in REDIRECTS:
        raise FetchError(
            Sight.REDIRECTED, f"{url} leads elsewhere ({answer.status}), which is not followed"
        )
    if answer.status != OK:
        raise FetchError(Sight.REFUSED, f"{url} answered {answer.status}")


class _ForbiddenError(Exception):
    """An address that must not be called."""


class _Guarded(httpcore.AnyIOBackend):
    """Connects to addresses that were judged, and to these only."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = networks

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        # All of them: one that may be called beside one that must not is a trick.
        for address in addresses:
            if (why := why_forbidden(address, self._networks)) is not None:
                raise _ForbiddenError(f"{host}: {why}")
        last: Exception = OSError(f"{host} has no address")
        for address in addresses:
            try:
                return await super().connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except httpcore.NetworkError as error:
                last = error
        raise last


def _said(error: BaseException) -> str:
    """The error in words; its kind where it has none."""
    return str(error) or type(error).__name__
