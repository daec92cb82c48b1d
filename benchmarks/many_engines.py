"""Many engines in one process: each reports at its times and long-polls, on open connections.

A client library costs about as much as the service, so requests are bytes made beforehand and
answers are read no further than their status and length.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

LONG_POLL_S = 20.0
HEALTH_EVERY_S = 0.1
PROBE_S = 0.01
JOB_PAGE = 50
NEXT_PAGE = re.compile(rb'link: <https?://[^/]+(/[^>]+)>; rel="next"', re.IGNORECASE)
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
MODEL = {
    "model_type": "llama",
    "num_layers": 2,
    "hidden_size": 64,
    "ffn_size": 128,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
    "max_positions": 4096,
}
POLICY = {"plan": {"dp": 1, "pp": 1, "sp": 1, "tp": 1}}


@dataclass(frozen=True, kw_only=True)
class Crowd:
    """So many engines; each sends a heartbeat of ``requests`` timings ``every_s``."""

    num_engines: int
    every_s: float
    requests: int
    seed: int


@dataclass
class Times:
    """Milliseconds of every request after the warm-up, from when it was due to its whole answer.

    ``late_ms`` is how late the client was: with its heartbeats, and with a timer beside them.
    """

    heartbeat_ms: list[float] = field(default_factory=list)
    health_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Answer:
    """An answer, and when its last byte came."""

    status: int
    head: bytes
    body: bytes
    received_s: float


class Connection(asyncio.Protocol):
    """One connection, one request at a time; opened when it is needed, again if it was ended."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._buffer = b""

    async def ask(self, request: bytes) -> Answer:
        """Raises ConnectionError when the service hangs up."""
        loop = asyncio.get_running_loop()
        self._answer = loop.create_future()
        if self._transport is None:
            await loop.create_connection(lambda: self, self._host, self._port)
        assert self._transport is not None, "it is open"
        self._transport.write(request)
        return await self._answer

    async def try_ask(self, request: bytes) -> Answer:
        """As :meth:`ask`; where the service hangs up, an answer of status 0."""
        try:
            return await self.ask(request)
        except OSError:
            return Answer(0, b"", b"", time.monotonic())

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport), "a stream"
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, blank, body = self._buffer.partition(b"\r\n\r\n")
        if blank and len(body) == _length(head) and self._answer is not None:
            self._buffer = b""
            if not self._answer.done():
                self._answer.set_result(Answer(int(head[9:12]), head, body, time.monotonic()))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError(f"the service hung up: {exc}"))


class Engine:
    """One engine: registered, it beats on one connection and polls on another."""

    def __init__(self, crowd: Crowd, beats: Connection, polls: Connection) -> None:
        self._crowd = crowd
        self._beats = beats
        self._polls = polls
        self._path = ""
        self._headers: dict[str, str] = {}

    async def register(self, number: int, key: str) -> None:
        self._headers = {"Authorization": f"Bearer {key}"}
        body = {
            "name": f"engine-{number}",
            "model_name": "tiny",
            "host": f"node-{number}",
            "model": MODEL,
            "envelope": {"max_num_seqs": 256, "max_num_batched_tokens": 8192},
            "capabilities": [],
            "policy": POLICY,
            "takes_credential": True,
        }
        answer = await self._beats.ask(encode("POST", "/v1/engines", self._headers, body))
        self._beats.close()  # the service would cut it, idle until all are registered
        if answer.status != 201:
            raise RuntimeError(f"engine not registered: {answer.status} {answer.body.decode()}")
        engine = json.loads(answer.body)
        self._path = f"/v1/engines/{engine['id']}"
        self._headers["Gearshift-Engine-Credential"] = engine["credential"]

    async def beat(self, due_s: float, warm_s: float, end_s: float, times: Times) -> None:
        """Heartbeats at their due times; a late one is late from when it was due."""
        body = _heartbeat(self._crowd)
        request = encode("POST", f"{self._path}/heartbeats", self._headers, body)
        while due_s < end_s:
            await asyncio.sleep(due_s - time.monotonic())
            late_s = time.monotonic() - due_s
            answer = await self._beats.try_ask(request)
            if answer.status != 202:
                times.errors.append(f"heartbeat: {answer.status}")
            if due_s >= warm_s:
                times.heartbeat_ms.append((answer.received_s - due_s) * 1e3)
                times.late_ms.append(late_s * 1e3)
            due_s = max(due_s + self._crowd.every_s, answer.received_s)

    async def follow(self, wait_s: float, times: Times) -> None:
        """Long polls, one after the other; the first waits ``wait_s``."""
        while True:
            if not await self.poll_once(wait_s, times):
                await asyncio.sleep(1.0)
            wait_s = LONG_POLL_S

    async def poll_once(self, wait_s: float, times: Times) -> bool:
        """One long poll; whether it was answered as it should be."""
        path = f"{self._path}/policy?after_version=1&wait_s={wait_s:g}"
        answer = await self._polls.try_ask(encode("GET", path, self._headers))
        if answer.status != 204:
            times.errors.append(f"long poll: {answer.status}")
        return answer.status == 204

    async def beat_at_once(self, num_beats: int) -> None:
        """Heartbeats one after the other."""
        request = encode("POST", f"{self._path}/heartbeats", self._headers, _heartbeat(self._crowd))
        for _ in range(num_beats):
            answer = await self._beats.ask(request)
            assert answer.status == 202, answer.body


async def ask_health(url: str, due_s: float, end_s: float, times: Times) -> None:
    """``/healthz`` again and again."""
    connection, request = Connection(url), encode("GET", "/healthz", {})
    while due_s < end_s:
        await asyncio.sleep(due_s - time.monotonic())
        begin_s = time.monotonic()
        answer = await connection.try_ask(request)
        times.health_ms.append((answer.received_s - begin_s) * 1e3)
        due_s = max(due_s + HEALTH_EVERY_S, answer.received_s)
    connection.close()


async def probe(due_s: float, end_s: float, times: Times) -> None:
    """How late a timer of this process is: answers wait as long before they are seen."""
    while due_s < end_s:
        await asyncio.sleep(due_s - time.monotonic())
        times.late_ms.append((time.monotonic() - due_s) * 1e3)
        due_s = time.monotonic() + PROBE_S


async def list_jobs(url: str, key: str, rounds: int) -> list[float]:
    """Milliseconds of each page of all tuning jobs, from the newest to the oldest."""
    headers, page_ms = {"Authorization": f"Bearer {key}"}, []
    connection = Connection(url)
    for _ in range(rounds):
        path: str | None = f"/v1/tuning-jobs?limit={JOB_PAGE}"
        while path is not None:
            begin_s = time.monotonic()
            answer = await connection.ask(encode("GET", path, headers))
            page_ms.append((answer.received_s - begin_s) * 1e3)
            if answer.status != 200:
                raise RuntimeError(f"page of jobs: {answer.status} {answer.body.decode()}")
            link = NEXT_PAGE.search(answer.head)
            path = None if link is None else link[1].decode()
    connection.close()
    return page_ms


def encode(method: str, path: str, headers: dict[str, str], body: Any = None) -> bytes:
    """A request as it goes out."""
    data = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: service", f"Content-Length: {len(data)}"]
    if data:
        lines.append("Content-Type: application/json")
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + data


def first_times(crowd: Crowd, begin_s: float) -> list[tuple[float, float]]:
    """Of each engine, when it first beats and how long it first polls: spread evenly by chance."""
    rng = random.Random(crowd.seed)
    return [
        (begin_s + rng.random() * crowd.every_s, rng.random() * LONG_POLL_S)
        for _ in range(crowd.num_engines)
    ]


def _length(head: bytes) -> int:
    found = LENGTH.search(head)
    return 0 if found is None else int(found[1])


def _heartbeat(crowd: Crowd) -> dict[str, Any]:
    request = {
        "age_ms": 900.0,
        "token_ms": [40.0 + 20.0 * n for n in range(32)],
        "input_tokens": 64,
        "outcome": "completed",
    }
    step = {"mode": "shift", "tokens_up_to": 64, "steps": 10, "seconds": 0.1, "tokens": 300}
    return {
        "window_s": crowd.every_s or 1.0,
        "arrived": crowd.requests,
        "policy_version": 1,
        "policy": POLICY,
        "stats": {"running": 1},
        "requests": [request] * crowd.requests,
        "steps": [step],
    }
