"""What tests of the service's web parts share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from migrations.runner import upgrade
from store import Database


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database with the newest schema, on each of the two kinds."""
    database = Database(database_url)
    upgrade(database.engine)
    yield database
    database.close()
