"""The front's side of ``clients.py``: lend each waiting client's socket to the engine's process."""

from __future__ import annotations

import itertools
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.server.connections import SOCKET_STATE

PATHS = ("/v1/completions", "/v1/chat/completions")
EVENTS = b"text/event-stream"


class Lender(Protocol):
    """Who carries it to the engine's process."""

    def lend(self, number: int, fd: int) -> None: ...

    def begin_stream(self, number: int, *, is_chunked: bool) -> None: ...

    def take_back(self, number: int) -> None: ...


class LentClients:
    """ASGI: lends the client's socket from the request to the last part of its answer."""

    def __init__(self, app: ASGIApp, lender: Lender) -> None:
        self._app = app
        self._lender = lender
        self._numbers = itertools.count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sock = scope.get("state", {}).get(SOCKET_STATE)
        if scope["type"] != "http" or scope["path"] not in PATHS or sock is None:
            await self._app(scope, receive, send)
            return
        number = next(self._numbers)
        self._lender.lend(number, sock.fileno())
        loan = _Loan(self._lender, number, send, is_chunked=scope["http_version"] == "1.1")
        try:
            await self._app(scope, receive, loan.send)
        finally:
            loan.end()


class _Loan:
    """One lent socket, taken back before anything is sent that the engine's process could not
    complete."""

    def __init__(self, lender: Lender, number: int, send: Send, *, is_chunked: bool) -> None:
        self._lender = lender
        self._number = number
        self._send = send
        self._is_chunked = is_chunked
        self._is_over = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kinds = [value for name, value in message["headers"] if name == b"content-type"]
            if kinds and kinds[0].startswith(EVENTS):
                self._lender.begin_stream(self._number, is_chunked=self._is_chunked)
            else:
                self.end()
        elif not message.get("more_body", False):
            self.end()
        await self._send(message)

    def end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._lender.take_back(self._number)
