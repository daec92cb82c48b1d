"""What a connection makes of requests that are wrong, many at once, or from another age."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from engine.server.connections import ServerConfig
from engine.server.strict_http import MAX_PIPELINED
from engine.spec.limits import RequestLimits
from tests.servers import in_thread

PATIENCE_S = 30
READ_S = 0.5
MOST_BYTES = 50_000_000  # more than all buffers between a client and a server
END = b"0\r\n\r\n"


@dataclass
class Echo:
    """Answers with the path and how much came, in chunks; a path in ``gates`` waits."""

    gates: dict[str, threading.Event] = field(default_factory=dict)
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, size = scope["path"], 0
        if path == "/until-gone":
            while (await receive())["type"] != "http.disconnect":
                pass
            self.gone.set()
            return
        while True:
            message = await receive()
            size += len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message["more_body"]:
                break
        self.headers = scope["headers"]
        if path == "/endless-answer":
            await self._fill(receive, send)
            return
        if path in self.gates:
            await asyncio.to_thread(self.gates[path].wait, PATIENCE_S)
        length = [(b"content-length", b"5")] if path == "/five" else []
        await send({"type": "http.response.start", "status": 200, "headers": length})
        if path == "/five":
            await send({"type": "http.response.body", "body": b"five!"})
            return
        for part in (path.encode(), f" {size};".encode()):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _fill(self, receive: Receive, send: Send) -> None:
        """Write until the client has gone."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        gone = asyncio.ensure_future(receive())
        while not gone.done():
            await send({"type": "http.response.body", "body": 65536 * b"x", "more_body": True})
            await asyncio.sleep(0)
        self.gone.set()


@pytest.fixture(scope="module")
def echo() -> Echo:
    return Echo()


@contextlib.contextmanager
def served(echo: Echo, limits: RequestLimits) -> Iterator[int]:
    """The port of a server until the block ends."""
    config = ServerConfig(echo, limits, log_level="critical", lifespan="off")
    with in_thread(uvicorn.Server(config)) as url:
        yield int(url.rpartition(":")[2])


@pytest.fixture(scope="module")
def port(echo: Echo) -> Iterator[int]:
    with served(echo, RequestLimits()) as port:
        yield port


def get(path: str, *lines: str, version: str = "1.1") -> bytes:
    return "\r\n".join([f"GET {path} HTTP/{version}", "Host: here", *lines, "", ""]).encode()


def post(path: str, *lines: str) -> bytes:
    """The head of a body in chunks."""
    return get(path, "Transfer-Encoding: chunked", *lines).replace(b"GET", b"POST", 1)


LAST = get("/last", "Connection: close")


def open_to(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)


def read_all(client: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    parts = []
    try:
        while part := client.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def exchange(port: int, *parts: bytes) -> bytes:
    with open_to(port) as client:
        for part in parts:
            client.sendall(part)
        return read_all(client)


def test_requests_sent_at_once_are_answered_in_turn(port: int) -> None:
    found = exchange(port, get("/1") + post("/2") + b"3\r\nabc\r\n" + END + get("/3") + LAST)
    places = [found.index(word) for word in (b"/1", b" 0;", b"/2", b" 3;", b"/3", b"/last")]
    assert places == sorted(places)
    assert found.count(b"HTTP/1.1 200 ") == 4


def test_of_too_many_at_once_the_first_are_answered(port: int, echo: Echo) -> None:
    gate = echo.gates["/first"] = threading.Event()
    with open_to(port) as client:
        client.sendall(get("/first") + 10 * MAX_PIPELINED * get("/more"))
        gate.set()
        found = read_all(client)
    assert found.count(b"HTTP/1.1 200 ") == MAX_PIPELINED + 1
    assert found.endswith(END)


@pytest.mark.parametrize(
    "wrong",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nna me: 1\r\n\r\n",
        b"GET / HTTP/9.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        post("/") + b"no number\r\n",
    ],
)
def test_what_is_not_http_is_refused(port: int, wrong: bytes) -> None:
    assert exchange(port, wrong).startswith(b"HTTP/1.1 400 ")
    found = exchange(port, get("/good") + wrong)
    assert found.startswith(b"HTTP/1.1 200 ") or not found, "an answer is not mixed with another"


def test_what_is_wrong_does_not_cut_the_answer_before_it(port: int, echo: Echo) -> None:
    gate = echo.gates["/slow"] = threading.Event()
    with open_to(port) as client:
        client.sendall(get("/slow") + b"nonsense\r\n\r\n")
        gate.set()
        found = read_all(client)
    assert found.count(b"HTTP/1.1 ") == 1
    assert found.startswith(b"HTTP/1.1 200 ")
    assert found.endswith(END)


def test_headers_after_a_body_are_nobodys(port: int, echo: Echo) -> None:
    exchange(port, post("/trailed", "A: 1", "Connection: close") + b"0\r\nA: 2\r\nB: 3\r\n\r\n")
    assert (b"a", b"1") in echo.headers
    assert not {(b"a", b"2"), (b"b", b"3")} & set(echo.headers)


@pytest.mark.parametrize("endless", [b"0\r\nA: ", b"1;a="])
def test_what_is_written_around_a_body_has_a_limit(port: int, endless: bytes) -> None:
    with open_to(port) as client:
        client.sendall(post("/endless") + endless)
        with contextlib.suppress(ConnectionError):
            for _ in range(MOST_BYTES // 1000):
                client.sendall(1000 * b"x")
            pytest.fail("all of it was taken")
        assert read_all(client)[:13] in (b"", b"HTTP/1.1 431 ")  # a reset may outrun the answer


def test_another_protocol_that_is_offered_is_declined_and_the_next_request_read(port: int) -> None:
    offer = get("/offer", "Connection: upgrade", "Upgrade: h2c")
    found = exchange(port, offer + LAST)
    assert found.count(b"HTTP/1.1 200 ") == 2
    assert b"/offer" in found


def test_http_1_0_ends_an_answer_with_the_connection(port: int) -> None:
    head, _, body = exchange(port, get("/old", version="1.0")).partition(b"\r\n\r\n")
    assert body == b"/old 0;"
    assert b"transfer-encoding" not in head.lower()
    head, _, body = exchange(port, get("/five", version="1.0")).partition(b"\r\n\r\n")
    assert (body, b"content-length: 5" in head) == (b"five!", True)


def test_a_client_that_reads_no_more_of_an_answer_is_cut_off(echo: Echo) -> None:
    echo.gone.clear()
    with (
        served(echo, RequestLimits(body_timeout_s=READ_S)) as port,
        open_to(port) as reader,
        open_to(port) as idle,
    ):
        for client in (reader, idle):
            client.sendall(get("/endless-answer"))
            assert client.recv(1)
        give_up_s = time.monotonic() + PATIENCE_S
        while not echo.gone.is_set():
            assert time.monotonic() < give_up_s, "nobody was cut off"
            assert reader.recv(2**20)
            time.sleep(0.001)
        assert read_all(idle)
        left = MOST_BYTES  # the other, who has been at it for longer, still gets all
        while left > 0:
            part = reader.recv(2**20)
            assert part
            left -= len(part)


def test_a_client_that_goes_is_noticed_though_another_request_waits(port: int, echo: Echo) -> None:
    with open_to(port) as client:
        client.sendall(get("/until-gone") + get("/never"))
        client.shutdown(socket.SHUT_WR)
    assert echo.gone.wait(PATIENCE_S)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(cuts=st.lists(st.integers(0, 200), max_size=6), size=st.integers(0, 40))
def test_however_requests_are_cut_they_are_the_same(port: int, cuts: list[int], size: int) -> None:
    chunk = f"{size:x}\r\n".encode() + size * b"x" + b"\r\n" if size else b""
    sent = post("/cut?a=%41") + chunk + END + LAST
    places = sorted({0, len(sent), *(min(cut, len(sent)) for cut in cuts)})
    parts = [sent[a:b] for a, b in itertools.pairwise(places)]
    found = exchange(port, *parts)
    assert found.count(b"HTTP/1.1 200 ") == 2
    assert f" {size};".encode() in found
