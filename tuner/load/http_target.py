"""A load target behind HTTP: any server with the OpenAI ``/v1/completions`` stream."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from engine.server.device_metrics import ENERGY
from engine.spec.energy import EnergyCounters
from engine.spec.measurement import Outcome
from tuner.load.served_model import CONNECT_TIMEOUT_S, base_url
from tuner.load.targets import Ending, OnDone, OnToken, spread_stamps
from tuner.load.urls import is_secure, key_headers
from tuner.workload.bounds import MAX_LENGTH_TOKENS

# A connection that rested for longer is not used again: most servers close theirs after five
# seconds, and a request that crosses the close is lost.
REST_S = 3.0
# Whenever a request begins or ends, a client looks at all its connections for each of them. With a
# thousand streams on one client, that took nine tenths of its time, and it was seconds late.
REQUESTS_PER_CLIENT = 16


class _Choice(msgspec.Struct):
    text: str | None = ""
    token_ids: list[int] | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


@dataclass(kw_only=True)
class _Received:
    """What has arrived of one stream: the time and the tokens of each network read."""

    at_s: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    usage_tokens: int | None = None
    is_finished: bool = False
    error: str | None = None

    def take(self, chunks: list[_Chunk], now_s: float) -> None:
        tokens = 0
        for chunk in chunks:
            if chunk.error is not None:
                self.error = _error_text(chunk.error)
            if chunk.usage is not None:
                self.usage_tokens = chunk.usage.completion_tokens
            for choice in chunk.choices or ():
                tokens += _num_tokens(choice)
                self.is_finished |= choice.finish_reason is not None
        if tokens:
            self.at_s.append(now_s)
            self.counts.append(tokens)

    @property
    def has_wrong_usage(self) -> bool:
        """Whether the server tells a number of tokens that cannot be: none, while some came, fewer,
        or more than any answer has."""
        told, seen = self.usage_tokens, sum(self.counts)
        return told is not None and seen > 0 and not 0 < told <= MAX_LENGTH_TOKENS

    def stamps(self) -> Iterator[float]:
        """One stamp per token: a read's gap is divided among its tokens."""
        last_s: float | None = None
        for at_s, count in zip(self.at_s, self._true_counts(), strict=True):
            for stamp in spread_stamps(last_s, at_s, count):
                yield stamp
                last_s = stamp

    def _true_counts(self) -> list[int]:
        """Counts that add up to the usage that the server reports, if it reports one."""
        total, seen = self.usage_tokens, sum(self.counts)
        if total is None or total == seen or not seen or self.has_wrong_usage:
            return self.counts
        # A server without token ids in its chunks: share its total out evenly over them.
        reads = len(self.counts)
        ends = [round(total * (i + 1) / reads) for i in range(reads)]
        return [b - a for a, b in zip([0, *ends], ends, strict=False)]


class HttpTarget:
    """Streams completions of token-id prompts; one thread runs all connections.

    Stamps are the times at which bytes arrive here. ``num_wrong_usages`` counts the answers whose
    usage cannot be, as 0 tokens while some came; those that came are taken for the truth. Use as a
    context manager or call :meth:`close`. Implements ``tuner.load.targets.LoadTarget``.
    """

    def __init__(self, url: str, model: str, *, api_key: str | None = None) -> None:
        self._url = f"{base_url(url)}/completions"
        self._model = model
        self.num_wrong_usages = 0
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._clients: list[httpx.AsyncClient] = []
        # Each client is in it once for every further request that it may have at once.
        self._places: list[httpx.AsyncClient] = []
        # Made before the first request: loading certificates takes tens of milliseconds. How long
        # to wait for an answer is the driver's decision; it cancels.
        self._options: dict[str, Any] = {
            "verify": httpx.create_ssl_context() if is_secure(self._url) else False,
            "timeout": httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            "limits": httpx.Limits(max_connections=None, keepalive_expiry=REST_S),
            "headers": {"Content-Type": "application/json", **key_headers(api_key)},
        }
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="http-load")
        self._thread.start()

    def __enter__(self) -> HttpTarget:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop every connection and end the thread. Safe to call twice."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def send(
        self,
        index: int,
        prompt_ids: tuple[int, ...],
        output_tokens: int,
        on_token: OnToken,
        on_done: OnDone,
    ) -> None:
        """See ``tuner.load.targets.LoadTarget``; tokens are reported when the stream has ended."""
        body = msgspec.json.encode(
            {
                "model": self._model,
                "prompt": prompt_ids,
                "max_tokens": output_tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
                "return_token_ids": True,
            }
        )
        self._loop.call_soon_threadsafe(self._start, index, body, on_token, on_done)

    def cancel(self, index: int) -> None:
        """Close the connection, which frees the sequence; see ``tuner.load.targets.LoadTarget``."""
        self._loop.call_soon_threadsafe(self._cancel, index)

    def read_energy(self) -> EnergyCounters:
        """See ``tuner.load.targets.LoadTarget``: what an engine of ours tells in ``/metrics``."""
        url = f"{self._url.removesuffix('/v1/completions')}/metrics"
        try:
            headers = self._options["headers"]
            answer = httpx.get(
                url, headers=headers, timeout=CONNECT_TIMEOUT_S, verify=is_secure(url)
            )
            text = answer.raise_for_status().text
            families = list(text_string_to_metric_families(text))
        except (httpx.HTTPError, ValueError):  # another kind of server, with other metrics
            return EnergyCounters()
        samples = [sample for family in families for sample in family.samples]
        joules = {s.labels["uuid"]: s.value for s in samples if s.name == ENERGY}
        return EnergyCounters(at_s=time.monotonic(), joules=joules)

    # -- on the loop's thread --------------------------------------------------------------------

    def _start(self, index: int, body: bytes, on_token: OnToken, on_done: OnDone) -> None:
        task = self._loop.create_task(self._run(body, on_token, on_done))
        self._tasks[index] = task
        task.add_done_callback(lambda _: self._tasks.pop(index, None))

    def _cancel(self, index: int) -> None:
        if task := self._tasks.get(index):
            task.cancel()

    async def _close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(client.aclose() for client in self._clients))

    async def _run(self, body: bytes, on_token: OnToken, on_done: OnDone) -> None:
        received = _Received()
        sent_s = time.monotonic()
        try:
            await self._stream(body, received)
        except Exception as error:  # whatever it is, the driver waits for an ending
            received.error = received.error or f"{type(error).__name__}: {error}"
        if received.error is None and not received.is_finished:
            received.error = "the stream ended without a finish_reason"
        self.num_wrong_usages += received.has_wrong_usage
        for stamp in received.stamps():
            on_token(stamp)
        outcome = Outcome.COMPLETED if received.error is None else Outcome.ERRORED
        on_done(Ending(outcome=outcome, sent_s=sent_s, error=received.error))

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client with a place for one more request."""
        if not self._places:
            self._clients.append(httpx.AsyncClient(**self._options))
            self._places += [self._clients[-1]] * REQUESTS_PER_CLIENT
        client = self._places.pop()
        try:
            yield client
        finally:
            self._places.append(client)

    async def _stream(self, body: bytes, received: _Received) -> None:
        async with (
            self._client() as client,
            client.stream("POST", self._url, content=body) as answer,
        ):
            if answer.status_code != httpx.codes.OK:
                text = (await answer.aread()).decode(errors="replace")
                received.error = f"HTTP {answer.status_code}: {text[:300]}"
                return
            decoder = msgspec.json.Decoder(_Chunk)
            pending = b""
            async for data in answer.aiter_bytes():
                now_s = time.monotonic()
                *events, pending = (pending + data).replace(b"\r\n", b"\n").split(b"\n\n")
                payloads = (payload for event in events for payload in _payloads(event))
                received.take([decoder.decode(p) for p in payloads if p != b"[DONE]"], now_s)


def _payloads(event: bytes) -> Iterator[bytes]:
    """The ``data:`` of one server-sent event; comments and other fields are skipped."""
    for line in event.split(b"\n"):
        if line.startswith(b"data:"):
            yield line[5:].strip()


def _num_tokens(choice: _Choice) -> int:
    """Tokens of one chunk: its ids if the server sends them, else one, or none if the chunk only
    ends the stream or holds no text at all (null)."""
    if choice.token_ids is not None:
        return len(choice.token_ids)
    return int(choice.text is not None and (bool(choice.text) or choice.finish_reason is None))


def _error_text(error: Any) -> str:
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
