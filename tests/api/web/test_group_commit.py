"""Writes that come together: one transaction, and every writer's own answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import pytest
import sqlalchemy as sa

from api.web.group_commit import GroupCommit
from store import ConflictError, Database, NotFoundError, UnitOfWork
from store.models import EngineRow

EMPTY = {"model": {}, "envelope": {}, "capabilities": [], "effective_policy": {}}
REFUSED = "refused"


@pytest.fixture
def database(current_url: str) -> Iterator[Database]:
    database = Database(current_url)
    yield database
    database.close()


def _add(uow: UnitOfWork, names: Sequence[str]) -> list[str | Exception]:
    """Engines of these names, one of which is never taken."""
    added: list[str | Exception] = []
    for name in names:
        if name == REFUSED:
            added.append(NotFoundError("engine", name))
        else:
            added.append(
                uow.engines.add(EngineRow(name=name, model_name="m", host="h", **EMPTY)).id
            )
    return added


def _add_all(database: Database, names: list[str]) -> tuple[list[str | BaseException], int]:
    """Add them in one moment: their answers, and how many transactions that took."""
    commits: list[sa.Connection] = []
    sa.event.listen(database.engine, "commit", commits.append)

    async def scene() -> list[str | BaseException]:
        group = GroupCommit(database, _add)
        return await asyncio.gather(*(group.add(name) for name in names), return_exceptions=True)

    return asyncio.run(scene()), len(commits)


def _kept(database: Database) -> dict[str, str]:
    with database.read() as uow:
        return {row.id: row.name for row in uow.session.scalars(sa.select(EngineRow))}


def test_what_comes_together_is_one_transaction_and_each_gets_its_own_answer(
    database: Database,
) -> None:
    names = [f"e{n}" for n in range(100)]
    answers, num_commits = _add_all(database, names)
    kept = _kept(database)
    assert [kept[str(answer)] for answer in answers] == names
    assert num_commits == 1


def test_a_refused_one_leaves_the_others_as_they_are(database: Database) -> None:
    first, refused, last = _add_all(database, ["a", REFUSED, "b"])[0]
    assert isinstance(refused, NotFoundError)
    assert _kept(database) == {first: "a", last: "b"}


def test_one_that_the_database_cannot_keep_fails_alone(database: Database) -> None:
    first, twin, last = _add_all(database, ["a", "a", "b"])[0]
    assert isinstance(twin, ConflictError)
    assert _kept(database) == {first: "a", last: "b"}
