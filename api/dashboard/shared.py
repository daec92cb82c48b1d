"""Readings that all open pages share: what one costs does not grow with who looks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool

from api.web.context import AppContext
from api.web.settings import ServiceSettings
from store import UnitOfWork

Answer = TypeVar("Answer")
Ask = Callable[[UnitOfWork, ServiceSettings], Answer]
# Of the time, so much may be spent on one kind of reading: a fleet of 1,000 engines takes about
# 0.1 s, and every page would read it once a second.
MOST_SHARE = 0.03
LONGEST_REST_S = 10.0


@dataclass
class _Reading:
    task: asyncio.Task[Any]
    rests_until_s: float = 0.0


class SharedReadings:
    """Reads for pages, of which many may ask for the same. Owned by one event loop.

    After a reading, the next one rests so long that readings take :data:`MOST_SHARE` of the time,
    at most :data:`LONGEST_REST_S`; who asks meanwhile is given what was read.
    """

    def __init__(self, context: AppContext, clock: Callable[[], float] = time.monotonic) -> None:
        self._context = context
        self._clock = clock
        self._readings: dict[Ask[Any], _Reading] = {}

    async def get(self, ask: Ask[Answer], *, is_new: bool) -> Answer:
        """What ``ask`` read last, or reads now. With ``is_new`` it is read after this call.

        ``ask`` is known by itself: the same function each time.
        """
        found = self._readings.get(ask)
        is_old = found is not None and found.task.done() and self._clock() >= found.rests_until_s
        if found is None or is_new or is_old:
            found = self._begin(ask)
        answer: Answer = await asyncio.shield(found.task)  # others may wait for it, too
        return answer

    def _begin(self, ask: Ask[Answer]) -> _Reading:
        async def run() -> Answer:
            begin_s = self._clock()
            try:
                return await run_in_threadpool(self._read, ask)
            finally:
                now_s = self._clock()
                rest_s = (now_s - begin_s) * (1 / MOST_SHARE - 1)
                made.rests_until_s = now_s + min(LONGEST_REST_S, rest_s)

        made = self._readings[ask] = _Reading(asyncio.create_task(run()))
        return made

    def _read(self, ask: Ask[Answer]) -> Answer:
        with self._context.database.read() as uow:
            return ask(uow, self._context.settings)
