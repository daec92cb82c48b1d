"""Lets requests have work done aside, a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.concurrency import run_in_threadpool

from api.aside.process import AsideLimits, Json, run_aside
from api.web.errors import ApiError

AT_ONCE = 2
MOST_WAITING = 16
RETRY_AFTER_S = "5"


class Aside:
    """At most ``AT_ONCE`` pieces of work at a time; a few more wait, others are told to come back.

    Owned by the event loop that serves requests.
    """

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(AT_ONCE)
        self._num_waiting = 0

    async def run(self, task: str, question: Json, limits: AsideLimits) -> Json:
        """The answer of a task.

        Raises:
            AsideError: the input is at fault, or the work is too much.
            ApiError: 429, too many wait already.
        """
        async with self._turn():
            return await run_in_threadpool(run_aside, task, question, limits)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        if self._num_waiting >= MOST_WAITING:
            raise ApiError(
                429,
                "busy",
                f"{AT_ONCE} requests of this kind are worked on and {MOST_WAITING} wait already",
                headers={"Retry-After": RETRY_AFTER_S},
            )
        self._num_waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._num_waiting -= 1
        try:
            yield
        finally:
            self._free.release()
