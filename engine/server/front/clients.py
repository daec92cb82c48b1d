"""Clients of a front that has died: the engine's process holds their sockets too, and tells them.

A front lends the socket of each client that waits for tokens. When it dies, the kernel would cut
these connections; but they are open here as well, so the client is told in the words of its answer.
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass

import msgspec

from engine.server.errors import ApiError, openai_error
from engine.server.raw import last_answer

LOST = ApiError(
    503,
    "the HTTP front end ended while it answered; send the request again",
    code="front_end_lost",
    headers={"Retry-After": "1"},  # another one starts in about a second
)


@dataclass(kw_only=True)
class _Client:
    sock: socket.socket
    # How the rest of its answer is written after the head: in chunks, or to the end of the
    # connection.
    is_stream: bool = False
    is_chunked: bool = False

    def last_words(self) -> bytes:
        """What makes a whole answer with an error of whatever has been sent so far."""
        error = msgspec.json.encode(openai_error(LOST))
        if not self.is_stream:
            headers = ((name.lower(), value) for name, value in LOST.headers.items())
            return last_answer(LOST.status, "application/json", error, *headers)
        events = [b"data: " + error + b"\n\n", b"data: [DONE]\n\n"]
        if not self.is_chunked:
            return b"".join(events)
        return b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in (*events, b""))


class HeldClients:
    """The lent sockets of one front, by the front's own numbers. Used by one thread."""

    def __init__(self) -> None:
        self._clients: dict[int, _Client] = {}

    def hold(self, number: int, fds: list[int]) -> None:
        """Keep a client's socket. There is none in ``fds`` if this process may open no more
        files."""
        for fd in fds[1:]:
            socket.socket(fileno=fd).close()
        if fds:
            self._clients[number] = _Client(sock=socket.socket(fileno=fds[0]))

    def begin(self, number: int, *, is_chunked: bool) -> None:
        """Its stream of events begins."""
        if client := self._clients.get(number):
            client.is_stream, client.is_chunked = True, is_chunked

    def release(self, number: int) -> None:
        """Its answer is about to end: the front does the rest."""
        if client := self._clients.pop(number, None):
            client.sock.close()

    def tell_lost(self) -> None:
        """Tell every client that its answer ends here, and hang up. The front must be dead."""
        while self._clients:
            _, client = self._clients.popitem()
            # One that does not read, or has gone, cannot be told.
            with client.sock, contextlib.suppress(OSError):
                client.sock.setblocking(False)
                client.sock.sendall(client.last_words())
