"""From the engine's loop thread into asyncio: outputs of one HTTP call, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec
from fastapi import Request as HttpRequest
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from engine.server.errors import CLIENT_CLOSED_REQUEST, ApiError
from engine.server.served import ServedEngine
from engine.spec.request import FinishReason, Request, RequestOutput

T = TypeVar("T")

# After this many submissions of one call, others get their turn on the event loop.
SUBMITTED_AT_ONCE = 32
# The engine looks at deadlines between two steps, and not at all while ranks start. We wait this
# long for its own answer; then the caller is told without it.
LATE_S = 0.5


class LoopBridge:
    """Hands calls from other threads to one event loop, waking it once for many."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls: deque[Callable[[], None]] = deque()
        self._is_woken = False

    def bind(self) -> None:
        """Serve the running loop from now on (called on it)."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._is_woken = loop, False

    def post(self, call: Callable[[], None]) -> None:
        """Run ``call`` on the loop soon; from any thread. A closed loop drops it."""
        self._calls.append(call)
        if not self._is_woken and self._loop is not None:
            self._is_woken = True
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        # Cleared before the queue is read: a call that is appended afterwards must wake the loop
        # again.
        self._is_woken = False
        while self._calls:
            self._calls.popleft()()


class ChoiceOutput(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One engine output and the index of the choice it belongs to."""

    index: int
    output: RequestOutput


class OutputStream:
    """The outputs of all choices of one HTTP call in the order they come.

    Owned by the event loop. ``close`` aborts what is unfinished; call it on every way out.
    """

    def __init__(
        self,
        engine: ServedEngine,
        bridge: LoopBridge,
        requests: Sequence[Request],
        observe: Callable[[Request, RequestOutput], None],
    ) -> None:
        self._engine = engine
        self._bridge = bridge
        self._requests = requests
        self._observe = observe
        # What has come and was not read yet, and who waits for more.
        self._items: list[ChoiceOutput] = []
        self._waiter: asyncio.Future[None] | None = None
        self._unfinished: set[int] = set()
        # Requests ended here, about which the engine may still send something.
        self._late: set[int] = set()
        self._deadline_s = requests[0].deadline_s  # all have the same

    async def open(self) -> None:
        """Submit every request. Raises what the engine raises, with none left running."""
        self._bridge.bind()
        answers = []
        try:
            for index, request in enumerate(self._requests):
                self._unfinished.add(index)
                answer = self._engine.submit(request, partial(self._receive, index))
                if index == 0 and answer is not None:
                    # The first request decides whether the whole call is let in.
                    await asyncio.wrap_future(answer)
                else:
                    answers.append(answer)
                if index % SUBMITTED_AT_ONCE == SUBMITTED_AT_ONCE - 1:
                    await asyncio.sleep(0)
            for answer in answers:
                if answer is not None:
                    await asyncio.wrap_future(answer)
        except BaseException:
            self.close()
            raise

    async def outputs(self) -> AsyncIterator[ChoiceOutput]:
        """Outputs until every choice has finished.

        What piled up meanwhile is merged per choice, so that a server that cannot keep up sends
        fewer and larger events instead of falling further behind.
        """
        while self._unfinished:
            if not self._items:
                await self._wait()
            items, self._items = self._items, []
            for item in _by_choice(items):
                if item.output.is_finished:
                    self._unfinished.discard(item.index)
                yield item

    def close(self) -> None:
        """Abort the choices still running, which frees their sequences. Safe to call twice."""
        unfinished, self._unfinished = self._unfinished, set()
        for index in unfinished:
            self._engine.abort(self._requests[index].request_id)

    async def _wait(self) -> None:
        """Until an output is there."""
        self._waiter = asyncio.get_running_loop().create_future()
        if self._deadline_s is None:
            await self._waiter
            return
        try:
            async with asyncio.timeout(self._deadline_s + LATE_S - time.monotonic()):
                await self._waiter
        except TimeoutError:
            self._end_late()

    def _end_late(self) -> None:
        """End every choice because its deadline has passed, although the engine has not ended
        it."""
        for index in sorted(self._unfinished):
            request_id = self._requests[index].request_id
            self._engine.abort(request_id, reason=FinishReason.DEADLINE)
            self._put(index, _missed(request_id))
        self._late |= self._unfinished

    def _receive(self, index: int, output: RequestOutput) -> None:
        """Called on the engine's loop thread."""
        self._bridge.post(lambda: self._put(index, output))

    def _put(self, index: int, output: RequestOutput) -> None:
        if index in self._late:
            return
        self._observe(self._requests[index], output)
        self._items.append(ChoiceOutput(index=index, output=output))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _missed(request_id: str) -> RequestOutput:
    return RequestOutput(
        request_id=request_id,
        token_ids=(),
        text="",
        finish_reason=FinishReason.DEADLINE,
        token_s=time.monotonic(),
        error="its deadline passed",
    )


def _by_choice(items: list[ChoiceOutput]) -> list[ChoiceOutput]:
    """The items with all outputs of one choice joined into one, in order of first appearance."""
    if len(items) == 1:
        return items
    parts: dict[int, list[RequestOutput]] = {}
    for item in items:
        parts.setdefault(item.index, []).append(item.output)
    return [ChoiceOutput(index=index, output=_join(found)) for index, found in parts.items()]


def _join(outputs: Sequence[RequestOutput]) -> RequestOutput:
    return msgspec.structs.replace(
        outputs[-1],
        token_ids=tuple(token for output in outputs for token in output.token_ids),
        text="".join(output.text for output in outputs),
        logprobs=tuple(entry for output in outputs for entry in output.logprobs),
        prompt_logprobs=outputs[0].prompt_logprobs,
    )


async def until_disconnect(receive: Receive) -> None:
    """Return once the client is gone. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def run_while_connected(http: HttpRequest, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled if the client goes away first.

    Raises:
        ApiError: 499, which nobody is left to read.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(until_disconnect(http.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(CLIENT_CLOSED_REQUEST, "the client has gone", code="client_gone")
        return task.result()
    finally:
        await _cancel(task, gone)


class EventStream(StreamingResponse):
    """Server-sent events that end as soon as the client does, even between two events."""

    def __init__(self, events: AsyncIterator[bytes], *, on_end: Callable[[], None]) -> None:
        super().__init__(
            events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )
        self._on_end = on_end

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self.stream_response(send))
        gone = asyncio.ensure_future(until_disconnect(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and not gone.done():
                sending.result()
        finally:
            await _cancel(sending, gone)
            self._on_end()


async def _cancel(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
