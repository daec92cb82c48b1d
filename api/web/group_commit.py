"""Many small writes as few transactions.

A transaction costs about as much for one heartbeat as for fifty, and SQLite has one writer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from store import Database, UnitOfWork
from store.outage import is_outage

Item = TypeVar("Item")
Answer = TypeVar("Answer")
# Time from one group to the next: what comes meanwhile is written together. Nobody waits longer
# than this for a group, and an item that comes alone does not wait at all.
EVERY_S = 0.03
MOST_ITEMS = 200

Write = Callable[[UnitOfWork, Sequence[Item]], Sequence[Answer | Exception]]


class GroupCommit(Generic[Item, Answer]):
    """Writes the items that come within a moment in one transaction.

    ``write`` gives for each item its answer, or the error it is refused with; of a refused item it
    must have written nothing. What else it raises, where the group has several items, is that of
    one of them: then each is written by itself.
    """

    def __init__(self, database: Database, write: Write[Item, Answer]) -> None:
        self._database = database
        self._write = write
        self._waiting: list[tuple[Item, asyncio.Future[Answer]]] = []
        self._task: asyncio.Task[None] | None = None

    async def add(self, item: Item) -> Answer:
        """The answer to ``item``, when it is committed.

        Raises:
            Exception: what it is refused with, or why it cannot be written.
        """
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, answer))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return await answer

    async def _run(self) -> None:
        while self._waiting:
            begin_s = time.monotonic()
            group, self._waiting = self._waiting[:MOST_ITEMS], self._waiting[MOST_ITEMS:]
            found = await asyncio.to_thread(self._write_all, [item for item, _ in group])
            for (_, answer), value in zip(group, found, strict=True):
                _settle(answer, value)
            await asyncio.sleep(begin_s + EVERY_S - time.monotonic())

    def _write_all(self, items: Sequence[Item]) -> Sequence[Answer | Exception]:
        try:
            with self._database.begin() as uow:
                return self._write(uow, items)
        except Exception as error:
            if len(items) == 1 or is_outage(error):
                return [error] * len(items)
            return [value for item in items for value in self._write_all([item])]


def _settle(answer: asyncio.Future[Answer], value: Answer | Exception) -> None:
    if answer.done():
        return  # whoever asked has gone
    if isinstance(value, Exception):
        answer.set_exception(value)
    else:
        answer.set_result(value)
