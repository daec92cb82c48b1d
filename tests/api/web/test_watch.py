"""Requests that wait: woken by this process's commits at once, by others' at the next look."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import sqlalchemy as sa

from api.web.watch import Watch, Watched
from store import Database
from store.models import EngineRow
from tests.postgres import PostgresCluster

NEVER_S = 3600.0
LIMIT_S = 60.0
NUM_ENGINES = 50
# What such a connection said last is that it listens.
LISTENERS = "FROM pg_stat_activity WHERE query LIKE 'LISTEN %' AND datname = current_database()"


@pytest.fixture
def database(current_url: str) -> Iterator[Database]:
    database = Database(current_url)
    yield database
    database.close()


def _engines(database: Database) -> list[str]:
    empty = {"model": {}, "envelope": {}, "capabilities": [], "effective_policy": {}}
    with database.begin() as uow:
        rows = [
            EngineRow(name=f"e{n}", model_name="m", host="h", **empty) for n in range(NUM_ENGINES)
        ]
        return [uow.engines.add(row).id for row in rows]


def _ask(database: Database, engine_id: str) -> None:
    """Ask an engine for another policy."""
    with database.begin() as uow:
        engine = uow.engines.get(engine_id, for_update=True)
        uow.policies.add(
            engine, document={}, origin="test", reason="", created_by="test", control=None
        )


async def _until_listening(database: Database, number: int) -> None:
    """Wait until so many connections of the database listen."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            with database.read() as uow:
                if uow.session.scalar(sa.text(f"SELECT count(*) {LISTENERS}")) == number:
                    return
            await asyncio.sleep(0.02)


@asynccontextmanager
async def _running(watch: Watch) -> AsyncIterator[None]:
    task = asyncio.create_task(watch.run())
    await asyncio.sleep(0)  # it has begun
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def _waiting(watch: Watch, engine_ids: list[str]) -> list[asyncio.Task[bool]]:
    return [
        asyncio.create_task(watch.wait(Watched.POLICY, engine_id, seen=0, timeout_s=NEVER_S))
        for engine_id in engine_ids
    ]


def test_a_commit_of_this_process_wakes_its_engine_alone_without_a_read_for_each(
    database: Database,
) -> None:
    engine_ids = _engines(database)
    watch = Watch(database, look_every_s=NEVER_S)
    reads: list[str] = []

    async def scene() -> list[bool]:
        async with _running(watch):
            waiting = _waiting(watch, engine_ids)
            await asyncio.sleep(0)
            await asyncio.to_thread(_ask, database, engine_ids[7])
            sa.event.listen(database.engine, "before_cursor_execute", note)
            assert await asyncio.wait_for(waiting[7], LIMIT_S)
            return [task.done() for task in waiting]

    def note(_c: object, _k: object, statement: str, *_: object) -> None:
        if statement.startswith("SELECT"):
            reads.append(statement)

    done = asyncio.run(scene())
    assert [n for n, is_done in enumerate(done) if is_done] == [7]
    # At the commit, at PostgreSQL's word of it and when listening began; not once for each of 50.
    assert len(reads) <= 3


def test_a_commit_of_another_process_wakes_at_the_next_look(database: Database) -> None:
    (engine_id, *_) = _engines(database)
    watch = Watch(database, look_every_s=0.02)
    other = Database(database.url)

    async def scene() -> bool:
        async with _running(watch):
            (waiting,) = _waiting(watch, [engine_id])
            await asyncio.sleep(0)
            await asyncio.to_thread(_ask, other, engine_id)
            return await asyncio.wait_for(waiting, LIMIT_S)

    assert asyncio.run(scene())
    other.close()


@pytest.fixture
def postgres_url(postgres_cluster: PostgresCluster, newest_postgres: str) -> Iterator[str]:
    url = postgres_cluster.create_database(like=newest_postgres)
    yield url
    postgres_cluster.drop_database(url)


def test_postgresql_tells_of_another_processs_commit_though_nobody_looks(postgres_url: str) -> None:
    database, other = Database(postgres_url), Database(postgres_url)
    (engine_id, *_) = _engines(database)
    watch = Watch(database, look_every_s=NEVER_S)

    async def scene() -> bool:
        async with _running(watch):
            (waiting,) = _waiting(watch, [engine_id])
            await _until_listening(database, 1)
            await asyncio.to_thread(_ask, other, engine_id)
            return await asyncio.wait_for(waiting, LIMIT_S)

    assert asyncio.run(scene())
    database.close()
    other.close()


def test_a_lost_connection_of_notices_is_made_up_for_by_looking_and_made_again(
    postgres_url: str,
) -> None:
    database, other = Database(postgres_url), Database(postgres_url)
    (engine_id, next_id, *_) = _engines(database)
    watch = Watch(database, look_every_s=0.02)

    async def scene() -> None:
        async with _running(watch):
            first, second = _waiting(watch, [engine_id, next_id])
            await _until_listening(database, 1)
            with other.read() as uow:
                uow.session.execute(sa.text(f"SELECT pg_terminate_backend(pid) {LISTENERS}"))
            await asyncio.to_thread(_ask, other, engine_id)
            assert await asyncio.wait_for(first, LIMIT_S)
            await _until_listening(database, 1)
            await asyncio.to_thread(_ask, other, next_id)
            assert await asyncio.wait_for(second, LIMIT_S)

    asyncio.run(scene())
    database.close()
    other.close()


def test_an_end_of_the_service_wakes_everyone_without_news(database: Database) -> None:
    engine_ids = _engines(database)
    watch = Watch(database, look_every_s=NEVER_S)

    async def scene() -> list[bool]:
        async with _running(watch):
            waiting = _waiting(watch, engine_ids)
            await asyncio.sleep(0)
            watch.end()
            return await asyncio.wait_for(asyncio.gather(*waiting), LIMIT_S)

    assert asyncio.run(scene()) == [False] * NUM_ENGINES


def test_what_is_gone_wakes_who_waits_for_it(database: Database) -> None:
    watch = Watch(database, look_every_s=0.02)

    async def scene() -> bool:
        async with _running(watch):
            waiting = watch.wait(Watched.JOB, "job_gone", seen=3, timeout_s=NEVER_S)
            return await asyncio.wait_for(waiting, LIMIT_S)

    assert asyncio.run(scene())


def test_engines_that_all_come_after_a_start_share_a_look(database: Database) -> None:
    engine_ids, reads = _engines(database), []
    sa.event.listen(database.engine, "before_cursor_execute", lambda *args: reads.append(args[2]))

    async def come() -> None:
        watch = Watch(database, look_every_s=NEVER_S)
        async with _running(watch), asyncio.timeout(LIMIT_S):
            wishes = await asyncio.gather(*(watch.find_wish(one) for one in engine_ids))
            assert all(wish is not None and wish.version == 0 for wish in wishes)
            assert await watch.find_wish("nobody") is None

    asyncio.run(come())
    assert sum("FROM engines" in read for read in reads) <= 3


def test_a_nudge_at_the_moment_of_its_end_does_not_keep_it_from_ending(database: Database) -> None:
    """Both come in one turn of the loop, as when it has just begun to listen."""

    async def end_nudged() -> bool:
        watch = Watch(database, look_every_s=NEVER_S)
        task = asyncio.create_task(watch.run())
        waiting = _waiting(watch, ["nobody"])
        await asyncio.sleep(0.05)
        watch._is_nudged.set()
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=LIMIT_S)
        for waiter in waiting:
            waiter.cancel()
        return task in done

    assert asyncio.run(end_nudged())


def test_news_that_came_before_a_wait_and_was_looked_at_for_others_is_not_missed(
    database: Database,
) -> None:
    (engine_id, other_id, *_) = _engines(database)
    watch = Watch(database, look_every_s=NEVER_S)

    async def scene() -> None:
        async with _running(watch):
            with database.begin() as uow:
                jobs = [uow.jobs.add(spec={}, num_trials=1, created_by="test").id for _ in "ab"]
            follower = asyncio.create_task(
                watch.wait(Watched.JOB, jobs[0], seen=0, timeout_s=NEVER_S)
            )
            await asyncio.sleep(0)
            # Two have read that there is nothing new. Then this comes, and others are told of it.
            await asyncio.to_thread(_ask, database, engine_id)
            with database.begin() as uow:
                for job_id in jobs:
                    uow.jobs.append_event(job_id, "state", {})
            assert await asyncio.wait_for(follower, LIMIT_S)
            (other,) = _waiting(watch, [other_id])
            await asyncio.sleep(0)
            await asyncio.to_thread(_ask, database, other_id)
            assert await asyncio.wait_for(other, LIMIT_S)
            late = watch.wait(Watched.POLICY, engine_id, seen=0, timeout_s=NEVER_S)
            assert await asyncio.wait_for(late, LIMIT_S)
            late = watch.wait(Watched.JOB, jobs[1], seen=0, timeout_s=NEVER_S)
            assert await asyncio.wait_for(late, LIMIT_S)

    asyncio.run(scene())
