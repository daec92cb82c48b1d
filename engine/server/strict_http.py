"""uvicorn's protocol over httptools, as strict with a client as the standard asks.

httptools reads a request in C. This file does what it leaves to its caller: limit the length of a
head and the number of waiting requests, and answer when something is wrong.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import httptools
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from engine.server.limits import MAX_HEADER_BYTES
from engine.server.raw import last_answer

# A client may send this many requests before the first of them is answered. After these the
# connection closes, and the client sends the others again.
MAX_PIPELINED = 64
PLAIN_TEXT = "text/plain; charset=utf-8"


class StrictProtocol(HttpToolsProtocol):
    """A connection whose requests are valid and bounded, and are answered in turn."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # Bytes since the last whole head or part of a body: the next head, or what a client writes
        # around the parts of a body.
        self._unread_bytes = 0
        self._has_begun = False  # a request, whose end has not come
        self._is_in_body = False
        self._has_failed = False
        self._running: RequestResponseCycle | None = None

    @property
    def _is_answering(self) -> bool:
        """Whether a request waits for its answer."""
        return self.cycle is not None and not self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        while data and not self._has_failed:
            data = self._read(data)

    def _read(self, data: bytes) -> bytes:
        """Read ``data``; returns what is left of it after a request for a protocol that is not
        spoken."""
        self._unread_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if not self._should_upgrade():
                return data[upgrade.args[0] :]
            if self._is_answering:
                self.transport.close()
            else:
                self.handle_websocket_upgrade()
        except httptools.HttpParserError:
            self._fail(HTTPStatus.BAD_REQUEST, "Invalid HTTP request received.")
        else:
            if self._unread_bytes > MAX_HEADER_BYTES:
                status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
                self._fail(status, "Headers are too long.")
        return b""

    def on_message_begin(self) -> None:
        self._has_begun = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise httptools.HttpParserError("too many requests wait for their turn")
        if self.parser.get_http_version() == "1.1":
            num_hosts = sum(name == b"host" for name, _ in self.headers)
            if num_hosts != 1:
                raise httptools.HttpParserError(f"{num_hosts} Host headers")
        super().on_headers_complete()
        self._unread_bytes = 0
        self._is_in_body = True
        # Those after a body in chunks come to this copy: no application takes them for its own.
        self.headers = self.headers.copy()

    def on_body(self, body: bytes) -> None:
        self._unread_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._has_begun = self._is_in_body = False
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        # The server's own protocol tells only the last request, which may wait for its turn yet.
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        if cycle.scope["http_version"] == "1.0":
            app = _without_chunks(app, cycle)
        super()._start_asgi_task(cycle, app)

    def _fail(self, status: HTTPStatus, text: str) -> None:
        """Read no more. What was right before is answered, what is wrong is refused."""
        self._has_failed = True
        self.logger.warning(text)
        cycle = self.cycle
        if cycle is not None and not self._is_in_body and not cycle.response_complete:
            cycle.keep_alive = False  # the connection closes after the answer
        elif self._is_in_body and cycle is not None and self._has_answer_before(cycle):
            self.transport.close()
        else:
            self._refuse(status, text)

    def _has_answer_before(self, cycle: RequestResponseCycle) -> bool:
        """Whether a refusal now would stand within an answer, or after the one to its request."""
        return cycle is not self._running or cycle.response_started

    def _refuse(self, status: HTTPStatus, text: str, *headers: tuple[str, str]) -> None:
        self.transport.write(last_answer(status, PLAIN_TEXT, text.encode(), *headers))
        self.transport.close()


def _without_chunks(app: ASGIApp, cycle: RequestResponseCycle) -> ASGIApp:
    """``app`` for a client of HTTP/1.0, which knows no chunks: without a length, an answer ends
    with its connection."""
    ends_with_connection = False

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_on(message: Message) -> None:
            nonlocal ends_with_connection
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message.get("headers", ())}
                ends_with_connection = b"content-length" not in names
                cycle.chunked_encoding = False if ends_with_connection else None
            elif ends_with_connection:  # each part is as long as it should be
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_on)

    return answer
