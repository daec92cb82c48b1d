"""Pages of the dashboard that are open at once."""

from __future__ import annotations

import asyncio

import pytest

from api.dashboard.shared import LONGEST_REST_S, MOST_SHARE, SharedReadings
from api.web.context import AppContext
from api.web.metrics import ServiceMetrics
from api.web.settings import ServiceSettings
from store import Database, UnitOfWork


class Reading:
    """Gives how often it has been read; each takes ``takes_s`` on its own clock."""

    def __init__(self) -> None:
        self.now_s = self.takes_s = 0.0
        self.times = 0
        self.fails = False

    def clock(self) -> float:
        return self.now_s

    def read(self, _uow: UnitOfWork, _settings: ServiceSettings) -> int:
        self.now_s += self.takes_s
        self.times += 1
        if self.fails:
            raise OSError("the database is away")
        return self.times


@pytest.fixture
def context(settings: ServiceSettings, database: Database) -> AppContext:
    return AppContext(settings=settings, database=database, metrics=ServiceMetrics(fresh_s=1.0))


def test_many_pages_share_one_reading_that_rests_in_proportion(context: AppContext) -> None:
    reading = Reading()
    reading.takes_s = 0.1

    async def look() -> None:
        shared = SharedReadings(context, reading.clock)
        ask = reading.read
        assert await asyncio.gather(*(shared.get(ask, is_new=False) for _ in range(20))) == 20 * [1]
        reading.now_s += 0.99 * 0.1 * (1 / MOST_SHARE - 1)
        assert await shared.get(ask, is_new=False) == 1
        reading.now_s += 0.1
        assert await shared.get(ask, is_new=False) == 2

    asyncio.run(look())


def test_a_page_that_is_opened_reads_anew_and_rests_end(context: AppContext) -> None:
    reading = Reading()
    reading.takes_s = 100.0

    async def look() -> None:
        shared, ask = SharedReadings(context, reading.clock), reading.read
        assert await shared.get(ask, is_new=False) == 1
        assert await shared.get(ask, is_new=True) == 2
        assert await shared.get(ask, is_new=False) == 2
        reading.now_s += LONGEST_REST_S
        assert await shared.get(ask, is_new=False) == 3

    asyncio.run(look())


def test_pages_are_told_why_nothing_was_read_and_read_again(context: AppContext) -> None:
    reading = Reading()
    reading.fails = True

    async def look() -> None:
        shared, ask = SharedReadings(context, reading.clock), reading.read
        for _ in range(2):
            with pytest.raises(OSError, match="away"):
                await shared.get(ask, is_new=False)
        reading.fails = False
        assert await shared.get(ask, is_new=False) == 3

    asyncio.run(look())
