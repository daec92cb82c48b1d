"""The conformance suite of a server that is bounded by ``engine.server.limits.RequestLimits``.

A test module subclasses :class:`BoundedServerContract` and says how its server is started, what
needs a key there, and how a refusal is worded.
"""

from __future__ import annotations

import json
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from http.client import HTTPConnection, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

from engine.spec.limits import RequestLimits

KEY = "gs_key_of_the_bounded_server"
MAX_BODY_BYTES = 10_000
HUGE_BYTES = 200_000_000
# A fault shows as a wait; the tests themselves wait for nothing but the server's own limits.
PATIENCE_S = 30
Start = Callable[[RequestLimits], AbstractContextManager[str]]


class BoundedServerContract(ABC):
    """What a client can take of a server that asks for ``KEY``."""

    # A path that takes a JSON object, one that is read, and one that needs no key.
    post_path: str
    get_path: str
    open_path: str

    @abstractmethod
    def code_of(self, answer: HTTPResponse) -> str:
        """The word for a refusal, after a look at its form."""

    def refused(self, answer: HTTPResponse, status: int, code: str) -> None:
        assert (answer.status, self.code_of(answer)) == (status, code)

    def test_a_body_is_not_awaited_from_who_has_no_key(self, start: Start) -> None:
        with start(RequestLimits()) as url, connected(url) as client:
            begin(client, "POST", self.post_path, key="wrong", length=HUGE_BYTES)
            answer = client.getresponse()
            answer.read()
            assert answer.status == 401
            assert "bearer" in answer.headers["www-authenticate"].lower()
            assert is_closed(client)

    def test_a_body_beyond_the_limit_is_not_awaited_and_one_within_reaches_its_route(
        self, start: Start
    ) -> None:
        with start(RequestLimits(max_body_bytes=MAX_BODY_BYTES)) as url:
            with connected(url) as client:
                begin(client, "POST", self.post_path, length=MAX_BODY_BYTES + 1)
                self.refused(client.getresponse(), 413, "body_too_large")
                assert is_closed(client)
            with connected(url) as client:  # one without a length is cut off at the limit
                begin(client, "POST", self.post_path, length=None)
                for _ in range(MAX_BODY_BYTES // 1000 + 1):
                    client.send(b"3e8\r\n" + 1000 * b" " + b"\r\n")
                self.refused(client.getresponse(), 413, "body_too_large")
                assert is_closed(client)
            with connected(url) as client:
                for _ in range(2):  # on one connection
                    begin(client, "POST", self.post_path, length=MAX_BODY_BYTES)
                    client.send(b'{"nothing": 1}'.ljust(MAX_BODY_BYTES))
                    self.refused(client.getresponse(), self.invalid_status, "invalid_request")

    invalid_status = 422

    def test_a_body_that_does_not_come_is_408(self, start: Start) -> None:
        with start(RequestLimits(body_timeout_s=0.3)) as url, connected(url) as client:
            begin(client, "POST", self.post_path, length=100)
            client.send(b"{")
            self.refused(client.getresponse(), 408, "body_timeout")
            assert is_closed(client)

    def test_a_connection_that_sends_no_request_is_cut_and_one_may_rest_between_two(
        self, start: Start
    ) -> None:
        with start(RequestLimits(header_timeout_s=0.4)) as url, ExitStack() as stack:
            resting = stack.enter_context(connected(url))
            assert ask(resting, self.open_path).status == 200
            clients = [stack.enter_context(connected(url)) for _ in range(30)]
            for client, words in zip(
                clients, 10 * [b"", b"G", b"GET / HTTP/1.1\r\na:"], strict=True
            ):
                client.send(words)
            assert all(is_closed(client) for client in clients)
            # It has rested for longer than they had.
            assert ask(resting, self.open_path).status == 200
            resting.send(b"GET / HT")
            assert is_closed(resting)

    def test_a_connection_that_rests_for_too_long_is_closed(self, start: Start) -> None:
        with start(RequestLimits(keep_alive_s=0.1)) as url, connected(url) as client:
            assert ask(client, self.open_path).status == 200
            assert is_closed(client)

    def test_beyond_its_number_the_connection_that_waits_longest_is_cut(self, start: Start) -> None:
        with start(RequestLimits(max_connections=4)) as url, ExitStack() as stack:
            clients = [stack.enter_context(connected(url)) for _ in range(9)]
            assert all(is_closed(client) for client in clients[:5])
            for client in clients[5:]:
                assert ask(client, self.open_path).status == 200

    def test_beyond_its_number_none_is_cut_in_a_request(self, start: Start) -> None:
        with start(RequestLimits(max_connections=2)) as url, ExitStack() as stack:
            clients = [stack.enter_context(connected(url)) for _ in range(2)]
            for client in clients:
                begin(client, "POST", self.post_path, length=14, expect="100-continue")
                assert client.wire.recv(100).startswith(b"HTTP/1.1 100 "), "its body is awaited"
            with connected(url) as another:
                answer = another.getresponse_now()
                answer.read()
                assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            for client in clients:
                client.send(b'{"nothing": 1}')
                self.refused(client.getresponse(), self.invalid_status, "invalid_request")

    def test_beyond_its_rate_a_key_is_told_when_to_come_again(self, start: Start) -> None:
        with start(RequestLimits(rate_per_s=0.01)) as url, connected(url) as client:
            assert ask(client, self.get_path).status == 200
            answer = ask(client, self.get_path)
            assert answer.status == 429
            assert 0 < int(answer.headers["retry-after"]) <= 100
            assert ask(client, self.open_path).status == 200

    def test_headers_have_a_limit(self, start: Start) -> None:
        with start(RequestLimits()) as url:
            for size, status in ((20_000, 200), (40_000, 431), (400_000, 431)):
                with connected(url) as client:
                    assert ask(client, self.open_path, padding=size * "x").status == status


class Client(HTTPConnection):
    """A connection that can be used in halves; ``wire`` stays open when an answer closes it."""

    wire: socket.socket

    def connect(self) -> None:
        super().connect()
        self.wire = self.sock.dup()

    def getresponse_now(self) -> HTTPResponse:
        """An answer to nothing, from a server that lets nobody in."""
        answer = HTTPResponse(self.sock)
        answer.begin()
        return answer


@contextmanager
def connected(url: str) -> Iterator[Client]:
    """A connection to the server of ``url``."""
    client = Client(urlsplit(url).netloc, timeout=PATIENCE_S)
    client.connect()
    try:
        yield client
    finally:
        client.close()
        client.wire.close()


def begin(
    client: Client,
    method: str,
    path: str,
    *,
    length: int | None,
    key: str = KEY,
    expect: str | None = None,
) -> None:
    """Send the head of a request whose body has ``length`` bytes, None: comes in chunks."""
    client.putrequest(method, path)
    client.putheader("Authorization", f"Bearer {key}")
    client.putheader("Content-Type", "application/json")
    if expect is not None:
        client.putheader("Expect", expect)
    if length is None:
        client.putheader("Transfer-Encoding", "chunked")
    else:
        client.putheader("Content-Length", str(length))
    client.endheaders()


def ask(client: Client, path: str, padding: str = "") -> HTTPResponse:
    """A whole request and its answer, read."""
    headers = {"Authorization": f"Bearer {KEY}", "X-Padding": padding}
    client.request("GET", path, headers=headers)
    answer = client.getresponse()
    answer.read()
    return answer


def read_json(answer: HTTPResponse) -> Any:
    return json.loads(answer.read())


def is_closed(client: Client) -> bool:
    """Wait for the server to end the connection; says whether it did within the patience."""
    try:
        return client.wire.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
