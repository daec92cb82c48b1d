"""A database with the newest schema, once per supported kind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from store import Database


@pytest.fixture
def database(current_url: str) -> Iterator[Database]:
    database = Database(current_url)
    yield database
    database.close()
