"""Clients that are slow, gone, many, or talk nonsense."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from benchmarks.chaos.kinds.kind import Kind
from benchmarks.chaos.world import ADMIN, ENGINES, SERVICES, World

CUT_S = 8.0
NUM_HALF_OPEN = 60
NUM_GONE = 10
NUM_FLOOD, FLOOD_THREADS = 240, 24
MAY_ANSWER = (200, 202, 400, 401, 404, 405, 408, 411, 413, 415, 422, 429, 431, 503)
DEEP = b"[" * 20_000
NONSENSE = (
    b"GET / HTTP/9.9\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    b"POST /v1/tuning-jobs HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"POST /v1/engines HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabc",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    bytes(range(256)) * 8,
)
BODIES = (
    b"",
    b"{",
    b"null",
    b"[]",
    b'{"a":\x00}',
    b"\xff\xfe\x00",
    DEEP,
    b'{"model":"tiny","prompt":"\\ud800","max_tokens":4}',
    b'{"model":"tiny","prompt":[-1, 99999999999999999999],"max_tokens":4}',
    b'{"model":"tiny","prompt":[5],"max_tokens":1e308}',
    b'{"model_dir":"\\u0000","num_devices":1,"workload":"x","sla":"y"}',
    b'{"model_dir":"../../etc","num_devices":1e99,"workload":"","sla":"p95_ttft_ms<=NaN"}',
    b'{"caps":{"max_num_seqs":' + b"9" * 400 + b"}}",
)
PATHS = {
    "engine": ("/v1/completions", "/v1/chat/completions", "/tokenize", "/v1/engine/policy"),
    "service": ("/v1/tuning-jobs", "/v1/engines", "/v1/api-keys"),
}


def _connect(world: World, name: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", world.ports[name]), timeout=10)


def _reset(sock: socket.socket) -> None:
    """Close with RST, as a client that died."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def _stream_request(tokens: int) -> bytes:
    body = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": tokens, "ignore_eos": True}
    content = json.dumps({**body, "stream": True, "temperature": 0}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


@contextmanager
def _sockets() -> Iterator[list[socket.socket]]:
    """Sockets to use, all of them reset at the end."""
    opened: list[socket.socket] = []
    try:
        yield opened
    finally:
        for sock in opened:
            with contextlib.suppress(OSError):
                _reset(sock)


def _slow_readers(world: World, rng: random.Random) -> None:
    """Streams whose clients hardly read, and then are gone."""
    with _sockets() as opened:
        for name in ENGINES:
            for _ in range(4):
                sock = socket.socket()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                sock.settimeout(10)
                sock.connect(("127.0.0.1", world.ports[name]))
                opened.append(sock)
                sock.sendall(_stream_request(400))
        end_s = time.monotonic() + rng.uniform(1.0, 2.0)
        while time.monotonic() < end_s:
            for sock in opened:
                with contextlib.suppress(OSError):
                    sock.recv(1)
            time.sleep(0.05)


def _clients_gone(world: World, rng: random.Random) -> None:
    """Streams whose clients end in the middle, some before a first token."""
    for name in ENGINES:
        for number in range(NUM_GONE):
            with _sockets() as opened:
                opened.append(_connect(world, name))
                opened[0].sendall(_stream_request(400))
                if number % 2:
                    opened[0].recv(rng.randrange(1, 2000))


def _half_requests(world: World, _: random.Random) -> None:
    """Bodies that never come whole."""
    with _sockets() as opened:
        for name in (*SERVICES, *ENGINES):
            for _n in range(5):
                sock = _connect(world, name)
                opened.append(sock)
                sock.sendall(_stream_request(10)[:-20])
        time.sleep(0.5)


def _half_open(world: World, _: random.Random) -> None:
    """Connections that never say a whole head: others are served, and these are cut."""
    with _sockets() as opened:
        for name in (*SERVICES, *ENGINES):
            for _n in range(NUM_HALF_OPEN):
                sock = _connect(world, name)
                opened.append(sock)
                sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-")
        world.expect_answers()
        end_s = time.monotonic() + CUT_S
        left = 0
        for sock in opened:
            sock.settimeout(max(0.01, end_s - time.monotonic()))
            try:
                while sock.recv(4096):
                    pass
            except TimeoutError:
                left += 1
            except OSError:
                pass
    if left:
        world.faults.append(f"{left} half-open connections are held longer than {CUT_S:g} s")


def _flood(world: World, rng: random.Random) -> None:
    """Many quick requests at once, most of them without a right key."""
    targets = [f"{world.urls[name]}/v1/tuning-jobs?limit=5" for name in SERVICES]
    targets += [f"{world.urls[name]}/v1/models" for name in ENGINES]
    keys = (None, "gs_wrong", ADMIN)
    wishes = [(rng.choice(targets), rng.choice(keys)) for _ in range(NUM_FLOOD)]
    limits = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(timeout=30, limits=limits, trust_env=False) as client:

        def ask(mine: list[tuple[str, str | None]]) -> None:
            for url, key in mine:
                headers = {} if key is None else {"Authorization": f"Bearer {key}"}
                try:
                    status = client.get(url, headers=headers).status_code
                    if status not in MAY_ANSWER:
                        world.faults.append(f"a flood is answered by {status}")
                except httpx.TransportError as error:
                    world.faults.append(f"a flood is answered by {error!r}")

        threads = [
            threading.Thread(target=ask, args=(wishes[n::FLOOD_THREADS],), daemon=True)
            for n in range(FLOOD_THREADS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _nonsense(world: World, _: random.Random) -> None:
    """What is no HTTP is refused or cut, and nothing else happens."""
    for name in (*SERVICES, *ENGINES):
        for words in NONSENSE:
            with _sockets() as opened:
                sock = _connect(world, name)
                opened.append(sock)
                with contextlib.suppress(OSError):
                    sock.sendall(words)
                    sock.settimeout(CUT_S)
                    said = sock.recv(4096)
                    if said.startswith(b"HTTP/1.1 5") and not said.startswith(b"HTTP/1.1 503"):
                        world.faults.append(f"{name} answers {said[:60]!r} to {words[:40]!r}")


def _malformed(world: World, rng: random.Random) -> None:
    """Bodies of every wrong kind: each is refused by what is wrong with it."""
    headers = {"Authorization": f"Bearer {ADMIN}", "Content-Type": "application/json"}
    limits = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(timeout=30, limits=limits, trust_env=False, headers=headers) as client:
        for name in (rng.choice(SERVICES), *ENGINES):
            for path in PATHS["engine" if name in ENGINES else "service"]:
                for body in BODIES:
                    answer = client.post(world.urls[name] + path, content=body)
                    if answer.status_code not in MAY_ANSWER:
                        world.faults.append(
                            f"{name}{path} answers {answer.status_code} to {body[:60]!r}"
                        )


def _oversized(world: World, _: random.Random) -> None:
    """A body beyond the limit is refused before it has come."""
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    key = f"Authorization: Bearer {ADMIN}\r\nContent-Length: 1000000000\r\n\r\n"
    for name in (*SERVICES, *ENGINES):
        with _sockets() as opened:
            sock = _connect(world, name)
            opened.append(sock)
            sock.sendall((head + key).encode())
            said = sock.recv(4096)
            if b" 413 " not in said[:20]:
                world.faults.append(f"{name} answers {said[:60]!r} to a body of 1 GB")


KINDS = (
    Kind(name="slow readers", inject=_slow_readers),
    Kind(name="clients gone", inject=_clients_gone, weight=6),
    Kind(name="half requests", inject=_half_requests),
    Kind(name="half-open connections", inject=_half_open, weight=3),
    Kind(name="flood", inject=_flood),
    Kind(name="nonsense", inject=_nonsense),
    Kind(name="malformed bodies", inject=_malformed, weight=3),
    Kind(name="oversized bodies", inject=_oversized),
)
