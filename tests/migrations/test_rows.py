"""Rows survive every revision, down and up again, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory

from migrations.runner import SCRIPTS, check, downgrade, upgrade
from store import Database
from tests.migrations.stored import DATABASES, load_dump

FIRST = "0001"
FILLED = (
    "audit",
    "decisions",
    "engine_heartbeats",
    "engines",
    "job_events",
    "measurements",
    "policy_versions",
    "recommendations",
    "trials",
    "tuning_jobs",
)


@pytest.fixture
def stored(database_url: str) -> Iterator[Database]:
    """What a service of revision 0001 had kept, with the newest schema."""
    database = Database(database_url)
    upgrade(database.engine, FIRST)
    with database.engine.begin() as connection:
        load_dump(connection, DATABASES / f"{FIRST}.sql")
    upgrade(database.engine)
    yield database
    database.close()


def _revisions() -> list[str]:
    """Every revision, newest first."""
    script = ScriptDirectory(str(SCRIPTS))
    return [revision.revision for revision in script.walk_revisions()]


def _rows(engine: sa.Engine) -> dict[str, list[Any]]:
    """The keys of the rows of every table that was filled."""
    metadata = sa.MetaData()
    metadata.reflect(engine, only=FILLED)
    with engine.connect() as connection:
        return {
            name: sorted(
                tuple(row)
                for row in connection.execute(sa.select(*metadata.tables[name].primary_key.columns))
            )
            for name in FILLED
        }


def test_rows_survive_each_revision_down_and_up_again(stored: Database) -> None:
    newest = _rows(stored.engine)
    assert all(newest.values())
    down = _revisions()[1:]
    assert down[-1] == FIRST
    for revision in down:
        downgrade(stored.engine, revision)
        assert _rows(stored.engine) == newest, revision
    for revision in reversed(down[:-1]):
        upgrade(stored.engine, revision)
        assert _rows(stored.engine) == newest, revision
    upgrade(stored.engine)
    assert _rows(stored.engine) == newest
    assert check(stored.engine).differences == ()
