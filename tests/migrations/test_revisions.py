"""Schema changes go up, come down and never drift from the models, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from migrations.runner import check, downgrade, require_current, upgrade
from store import Database, SchemaError
from store.models import Base


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    database = Database(database_url)
    yield database.engine
    database.close()


def test_an_empty_database_is_reported_as_empty_and_refused(engine: sa.Engine) -> None:
    assert check(engine).current is None
    with pytest.raises(SchemaError, match="gearshift db upgrade"):
        require_current(engine)


def test_upgrading_an_empty_database_creates_every_table(engine: sa.Engine) -> None:
    upgrade(engine)
    tables = set(sa.inspect(engine).get_table_names())
    assert set(Base.metadata.tables) | {"alembic_version"} == tables
    require_current(engine)


def test_the_newest_revision_and_the_models_do_not_differ(engine: sa.Engine) -> None:
    upgrade(engine)
    status = check(engine)
    assert status.differences == ()
    assert status.is_current


def test_a_changed_table_is_found_as_a_difference(engine: sa.Engine) -> None:
    upgrade(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE trials ADD COLUMN extra INTEGER")
    status = check(engine)
    assert not status.is_current
    assert "extra" in status.differences[0]


def test_downgrading_to_base_leaves_nothing_and_upgrading_again_works(engine: sa.Engine) -> None:
    upgrade(engine)
    downgrade(engine, "base")
    assert set(sa.inspect(engine).get_table_names()) == {"alembic_version"}
    upgrade(engine)
    assert check(engine).is_current


def test_upgrading_twice_changes_nothing(engine: sa.Engine) -> None:
    upgrade(engine)
    upgrade(engine)
    assert check(engine).is_current


def test_a_schema_of_a_newer_version_is_refused_by_name(engine: sa.Engine) -> None:
    upgrade(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaError, match="9999"):
        upgrade(engine)


def test_the_scripts_are_found_from_any_working_directory(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    database = Database(sqlite_url)
    upgrade(database.engine)
    assert check(database.engine).is_current
    database.close()
