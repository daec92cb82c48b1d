"""Fixtures of more than one area: the databases every store-backed test runs on."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.postgres import (
    BOTH,
    PostgresCluster,
    current_database,
    empty_database,
    missing_reason,
    running_cluster,
)
from tests.servers import ending_at_once

# How long a case takes says nothing where other work runs beside it: timings never decide a test.
# Every run draws other examples: half of the usual hundred, where a test does not say how many.
settings.register_profile(
    "gearshift", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("gearshift")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported to collect the tests stays: the collector need not look through it, neither
    meanwhile nor again and again in every test."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """``-m gpu`` on a machine without one is no failure."""
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")


@pytest.fixture(scope="session", autouse=True)
def servers_end_at_once() -> Iterator[None]:
    with ending_at_once():
        yield


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


def _upgraded(url: str) -> str:
    from migrations.runner import upgrade
    from store import Database

    database = Database(url)
    upgrade(database.engine)
    database.close()
    return url


@pytest.fixture(scope="session")
def newest_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the newest schema, to be copied: to upgrade one takes 50 ms."""
    file = tmp_path_factory.mktemp("schema") / "newest.db"
    _upgraded(f"sqlite:///{file}")
    return file


@pytest.fixture(scope="session")
def newest_postgres(postgres_cluster: PostgresCluster) -> str:
    """The URL of one on PostgreSQL."""
    return _upgraded(postgres_cluster.create_database())


@pytest.fixture
def current_sqlite_url(sqlite_url: str, newest_sqlite: Path) -> str:
    """The URL of a SQLite database with the newest schema."""
    shutil.copy(newest_sqlite, sqlite_url.removeprefix("sqlite:///"))
    return sqlite_url


@pytest.fixture(params=BOTH)
def current_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a database with the newest schema, once per supported kind."""
    with current_database(request) as url:
        yield url
