"""Fixtures of more than one area: the databases every store-backed test runs on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.postgres import BOTH, PostgresCluster, empty_database, missing_reason, running_cluster

# How long a case takes says nothing where other work runs beside it: timings never decide a test.
settings.register_profile("gearshift", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("gearshift")


@pytest.fixture(scope="session")
def postgres_cluster() -> Iterator[PostgresCluster]:
    """One PostgreSQL cluster for the whole session, skipped with the reason where absent."""
    if reason := missing_reason():
        pytest.skip(reason)
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture(params=BOTH)
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty database, once per supported kind."""
    with empty_database(request) as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of an empty SQLite database."""
    return f"sqlite:///{tmp_path / 'gearshift.db'}"
