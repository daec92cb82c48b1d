"""A database with the newest schema, once per supported kind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from migrations.runner import upgrade
from store import Database


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    upgrade(database.engine)
    yield database
    database.close()
