"""Clients of the control plane: :class:`Client` waits for answers, :class:`AsyncClient` is
awaited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx

from api.clients.calls import AsyncSender, Call, Sender
from api.clients.errors import ClientError
from api.clients.events import EventReader, JobEvent
from api.clients.operations import ENGINES, JOBS, ROLLOUTS, Operations
from api.clients.retries import OUTAGES, Retries
from api.schemas.serving import EngineView, PolicyVersionView
from store.models import AckState
from tuner.load.urls import full_url

T = TypeVar("T")
RECONNECT_S = 0.5
LOOK_S = 0.2
CHUNK_BYTES = 2**18

__all__ = ["AsyncClient", "Client", "ClientError", "JobEvent", "Retries"]


class Client(Operations, Sender):
    """Calls the service at ``url`` with a key. Use as a context manager, from one thread.

    Methods are named as the operations of the service's description, and answer with the models of
    ``api.schemas``. Every method raises :class:`ClientError` for a refusal and
    ``httpx.TransportError`` when the service cannot be reached, ``retries`` later.
    """

    def __init__(
        self, url: str, api_key: str, *, timeout_s: float = 30.0, retries: Retries | None = None
    ) -> None:
        self._http = httpx.Client(**_options(url, api_key, timeout_s))
        self._retries = retries or Retries()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End its connections."""
        self._http.close()

    def send(self, call: Call[T]) -> T:
        pages = [self._request(call)]
        while (further := call.after(pages[-1])) is not None:
            pages.append(self._request(further))
        return call.read(pages)

    def follow_tuning_job(self, job_id: str) -> Iterator[JobEvent]:
        """Every event until the job is finished, over reconnects and outages of the service."""
        return self._follow(
            f"{JOBS}/{job_id}/events", lambda: self.get_tuning_job(job_id).state.is_final
        )

    def follow_rollout(self, rollout_id: str) -> Iterator[JobEvent]:
        """Every event until the rollout has ended, as :meth:`follow_tuning_job`."""
        return self._follow(
            f"{ROLLOUTS}/{rollout_id}/events", lambda: self.get_rollout(rollout_id).state.is_final
        )

    def _follow(self, path: str, has_ended: Callable[[], bool]) -> Iterator[JobEvent]:
        after, is_over = 0, False
        while not is_over:
            try:
                # Looked at before the stream: one that ends then has told everything.
                is_final = has_ended()
                for event in self._events(path, after):
                    after = event.seq
                    yield event
                is_over = is_final
            except (httpx.TransportError, ClientError) as error:
                _raise_refusal(error)
                time.sleep(RECONNECT_S)

    def wait_applied(self, engine_id: str, version: int, *, timeout_s: float = 300.0) -> EngineView:
        """The engine once it runs ``version`` or a later one.

        Raises:
            TimeoutError: it did not within the time, or refused it.
        """
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            engine = self.get_engine(engine_id)
            if engine.applied_version > version:
                _check_not_refused(self.list_policy_versions(engine_id), engine_id, version)
            if engine.applied_version >= version:
                return engine
            time.sleep(LOOK_S)
        raise _not_applied(engine_id, version)

    def _events(self, path: str, after: int) -> Iterator[JobEvent]:
        reader = EventReader()
        with self._http.stream("GET", **_stream(path, after)) as response:
            if response.is_error:
                response.read()
                raise ClientError.of(response)
            yield from filter(None, map(reader.take, response.iter_lines()))

    def _request(self, call: Call[Any]) -> httpx.Response:
        number = 0
        while True:
            found = self._attempt(call)
            wait_s = self._retries.wait_s(call, number, found)
            if wait_s is None:
                return _checked(found)
            time.sleep(wait_s)
            number += 1

    def _attempt(self, call: Call[Any]) -> httpx.Response | httpx.TransportError:
        if call.file is None:
            return self._sent(call, None)
        with call.file.open("rb") as file:
            return self._sent(call, iter(lambda: file.read(CHUNK_BYTES), b""))

    def _sent(
        self, call: Call[Any], content: Iterator[bytes] | None
    ) -> httpx.Response | httpx.TransportError:
        try:
            return self._http.request(call.method, call.path, content=content, **_parts(call))
        except httpx.TransportError as error:
            return error


class AsyncClient(Operations, AsyncSender):
    """As :class:`Client`, with methods that are awaited. Use as an async context manager, within
    one event loop; calls may run side by side."""

    def __init__(
        self, url: str, api_key: str, *, timeout_s: float = 30.0, retries: Retries | None = None
    ) -> None:
        self._http = httpx.AsyncClient(**_options(url, api_key, timeout_s))
        self._retries = retries or Retries()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End its connections."""
        await self._http.aclose()

    async def send(self, call: Call[T]) -> T:
        pages = [await self._request(call)]
        while (further := call.after(pages[-1])) is not None:
            pages.append(await self._request(further))
        return call.read(pages)

    def follow_tuning_job(self, job_id: str) -> AsyncIterator[JobEvent]:
        """As :meth:`Client.follow_tuning_job`."""

        async def has_ended() -> bool:
            return (await self.get_tuning_job(job_id)).state.is_final

        return self._follow(f"{JOBS}/{job_id}/events", has_ended)

    def follow_rollout(self, rollout_id: str) -> AsyncIterator[JobEvent]:
        """As :meth:`Client.follow_rollout`."""

        async def has_ended() -> bool:
            return (await self.get_rollout(rollout_id)).state.is_final

        return self._follow(f"{ROLLOUTS}/{rollout_id}/events", has_ended)

    async def _follow(
        self, path: str, has_ended: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[JobEvent]:
        after, is_over = 0, False
        while not is_over:
            try:
                is_final = await has_ended()
                async for event in self._events(path, after):
                    after = event.seq
                    yield event
                is_over = is_final
            except (httpx.TransportError, ClientError) as error:
                _raise_refusal(error)
                await asyncio.sleep(RECONNECT_S)

    async def wait_applied(
        self, engine_id: str, version: int, *, timeout_s: float = 300.0
    ) -> EngineView:
        """As :meth:`Client.wait_applied`."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            engine = await self.get_engine(engine_id)
            if engine.applied_version > version:
                _check_not_refused(await self.list_policy_versions(engine_id), engine_id, version)
            if engine.applied_version >= version:
                return engine
            await asyncio.sleep(LOOK_S)
        raise _not_applied(engine_id, version)

    async def _events(self, path: str, after: int) -> AsyncIterator[JobEvent]:
        reader = EventReader()
        async with self._http.stream("GET", **_stream(path, after)) as response:
            if response.is_error:
                await response.aread()
                raise ClientError.of(response)
            async for line in response.aiter_lines():
                if (event := reader.take(line)) is not None:
                    yield event

    async def _request(self, call: Call[Any]) -> httpx.Response:
        number = 0
        while True:
            found = await self._attempt(call)
            wait_s = self._retries.wait_s(call, number, found)
            if wait_s is None:
                return _checked(found)
            await asyncio.sleep(wait_s)
            number += 1

    async def _attempt(self, call: Call[Any]) -> httpx.Response | httpx.TransportError:
        content = None if call.file is None else _chunks(call.file)
        try:
            return await self._http.request(call.method, call.path, content=content, **_parts(call))
        except httpx.TransportError as error:
            return error


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(path.open, "rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk


def _options(url: str, api_key: str, timeout_s: float) -> dict[str, Any]:
    return {
        "base_url": full_url(url),
        "headers": {"Authorization": f"Bearer {api_key}"},
        "timeout": timeout_s,
    }


def _parts(call: Call[Any]) -> dict[str, Any]:
    return {"params": dict(call.params) or None, "headers": dict(call.headers), "json": call.json}


def _stream(path: str, after: int) -> dict[str, Any]:
    return {
        "url": path,
        "headers": {"Last-Event-ID": str(after)},
        "timeout": httpx.Timeout(30.0, read=60.0),
    }


def _checked(found: httpx.Response | httpx.TransportError) -> httpx.Response:
    if isinstance(found, httpx.TransportError):
        raise found
    if found.is_error:
        raise ClientError.of(found)
    return found


def _raise_refusal(error: Exception) -> None:
    """Go on after an outage only, also one that a proxy tells of."""
    if isinstance(error, ClientError) and error.status not in OUTAGES:
        raise error


def _check_not_refused(versions: Sequence[PolicyVersionView], engine_id: str, version: int) -> None:
    """A version that was refused is followed by one that tells what the engine runs instead."""
    for found in versions:
        if found.version == version and found.ack_state == AckState.REFUSED:
            raise TimeoutError(f"engine {engine_id} refused version {version}: {found.ack_message}")


def _not_applied(engine_id: str, version: int) -> TimeoutError:
    return TimeoutError(f"engine {engine_id} does not run version {version}; see {ENGINES}")
