"""What a request passes before a route sees it: size of its headers, key, rate, size of its body.

Nothing of a body is read before the key is known, and never more of it than the limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from http import HTTPStatus

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.server.headers import find_header
from engine.server.limits import MAX_HEADER_BYTES, RateLimit
from engine.server.pages import PAGE_PATHS
from engine.spec.limits import RequestLimits

CLOSE = {"Connection": "close"}
# This much of an unwanted body is read, for at most this long, before the answer goes out. If more
# came after the connection was closed, the client's system would throw the answer away.
MAX_DRAINED_BYTES = 64 * 1024
DRAIN_S = 0.25
# Stable words for programs: the phrases of HTTP have changed over time.
CODES = {
    408: "body_timeout",
    413: "body_too_large",
    429: "rate_limited",
    431: "headers_too_large",
}

# Returns the name under which requests are counted, or raises the server's own refusal.
Admit = Callable[[Request], Awaitable[str]]
Respond = Callable[[Request, Exception], Response]


class Gate:
    """Lets requests into ``app`` that are within ``limits`` and that ``admit`` knows.

    ``open_paths`` and the pages of the API's description need no key and are not counted.
    ``respond`` gives a refusal the form of the server's other errors. ``large_bodies`` lists
    bodies, by method and path, that may have more bytes, and proportionally more time to come.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: RequestLimits,
        open_paths: tuple[str, ...],
        admit: Admit,
        respond: Respond,
        large_bodies: Mapping[tuple[str, str], int] | None = None,
    ) -> None:
        self._app = app
        self._limits = limits
        self._open_paths = frozenset(open_paths)
        self._admit = admit
        self._respond = respond
        self._rate = RateLimit(limits.rate_per_s)
        self._of_large = {
            where: _enlarged(limits, most) for where, most in (large_bodies or {}).items()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limits = self._of_large.get((scope["method"], scope["path"]), self._limits)
        request, body = Request(scope), _Body(scope, receive, send, limits)
        try:
            await self._check(request, limits)
        except Exception as error:
            await self._respond(request, error)(scope, body.receive, body.send)
        else:
            await self._app(scope, body.receive, body.send)

    async def _check(self, request: Request, limits: RequestLimits) -> None:
        scope = request.scope
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if size + len(scope["query_string"]) > MAX_HEADER_BYTES:
            raise HTTPException(431, f"headers are longer than {MAX_HEADER_BYTES} bytes")
        if not self._is_open(scope["path"]):
            wait_s = self._rate.take(await self._admit(request))
            if wait_s is not None:
                detail = f"more than {self._limits.rate_per_s:g} requests/s with this key"
                raise HTTPException(429, detail, headers={"Retry-After": str(wait_s)})
        length = find_header(scope, b"content-length") or "0"
        if length.isdecimal() and int(length) > limits.max_body_bytes:
            raise too_large(limits)

    def _is_open(self, path: str) -> bool:
        return path in self._open_paths or path.startswith(PAGE_PATHS)


def code_of(error: HTTPException) -> str:
    """The stable word for a refusal of the framework or of the gate."""
    phrase = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    return CODES.get(error.status_code, phrase)


def _enlarged(limits: RequestLimits, max_body_bytes: int) -> RequestLimits:
    factor = max(1.0, max_body_bytes / limits.max_body_bytes)
    return replace(
        limits, max_body_bytes=max_body_bytes, body_timeout_s=factor * limits.body_timeout_s
    )


def too_large(limits: RequestLimits) -> HTTPException:
    """The refusal of a body beyond the limit."""
    return HTTPException(413, f"the body is longer than {limits.max_body_bytes} bytes", CLOSE)


class _Body:
    """A request's body as it comes. If an answer leaves little of it unread, the rest is thrown
    away; if it leaves more, the connection ends, because it would otherwise have to be read to the
    end.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: RequestLimits) -> None:
        self._receive = receive
        self._send = send
        self._limits = limits
        self._until_s: float | None = None
        self._num_bytes = 0
        has_length = find_header(scope, b"content-length") not in (None, "0")
        is_chunked = find_header(scope, b"transfer-encoding") is not None
        self._is_whole = not has_length and not is_chunked
        # A client that asks so sends its body only when told to.
        self._is_coming = find_header(scope, b"expect") is None

    async def receive(self) -> Message:
        """The next part.

        Raises:
            HTTPException: 413 beyond the limit, 408 when it took too long.
        """
        if self._is_whole:
            return await self._receive()
        if self._until_s is None:
            self._until_s = asyncio.get_running_loop().time() + self._limits.body_timeout_s
        try:
            async with asyncio.timeout_at(self._until_s):
                message = await self._receive()
        except TimeoutError as error:
            detail = f"the body had not come after {self._limits.body_timeout_s:g} s"
            raise HTTPException(408, detail, CLOSE) from error
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > self._limits.max_body_bytes:
            raise too_large(self._limits)
        self._is_whole = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Pass an answer on."""
        if message["type"] == "http.response.start" and not self._is_whole:
            await self._drain()
            if not self._is_whole:
                MutableHeaders(scope=message)["Connection"] = "close"
        await self._send(message)

    async def _drain(self) -> None:
        if not self._is_coming:
            return
        end = self._num_bytes + MAX_DRAINED_BYTES
        with suppress(TimeoutError, HTTPException):
            async with asyncio.timeout(DRAIN_S):
                while not self._is_whole and self._num_bytes < end:
                    await self.receive()
