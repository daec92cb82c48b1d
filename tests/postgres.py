"""A PostgreSQL cluster of the test session's own, thrown away at its end."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

SYSTEM_USER = "postgres"
BOTH = ("sqlite", "postgresql")
# Where one of the kinds is tried by `make test-slow` only.
BOTH_SLOWLY = ("sqlite", pytest.param("postgresql", marks=pytest.mark.slow))
SQLITE_SLOWLY = (pytest.param("sqlite", marks=pytest.mark.slow), "postgresql")


def find_binaries() -> Path | None:
    """The folder of initdb and postgres: on the PATH, else the newest Debian-style install."""
    on_path = shutil.which("initdb")
    if on_path and shutil.which("pg_ctl"):
        return Path(on_path).parent
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


def missing_reason() -> str | None:
    """Why no cluster can be started here, or None."""
    if find_binaries() is None:
        return "PostgreSQL (initdb) is not installed"
    if os.getuid() == 0 and not _has_user(SYSTEM_USER):
        return f"initdb refuses root and there is no {SYSTEM_USER} user"
    return None


class PostgresCluster:
    """A running cluster at a ``place``; makes one database per caller."""

    def __init__(self, place: str, start: list[str], stop: list[str]) -> None:
        self._place = place
        self._start = start
        self._stop = stop
        self._admin = sa.create_engine(self._url("postgres"), isolation_level="AUTOCOMMIT")

    def create_database(self, *, like: str | None = None) -> str:
        """Make an empty database, or one ``like`` that of a URL, and return its URL."""
        name = f"t{secrets.token_hex(6)}"
        template = f" TEMPLATE {sa.make_url(like).database}" if like else ""
        with self._admin.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}{template}")
        return self._url(name)

    def drop_database(self, url: str) -> None:
        name = sa.make_url(url).database
        with self._admin.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")

    @contextmanager
    def away(self) -> Iterator[None]:
        """The cluster is down, its connections cut, while the block runs."""
        _run(self._stop)
        try:
            yield
        finally:
            _run(self._start)
            self._admin.dispose()

    def close(self) -> None:
        self._admin.dispose()

    def _url(self, database: str) -> str:
        return f"postgresql+psycopg://{SYSTEM_USER}@/{database}?host={self._place}"


@contextmanager
def empty_database(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty database of the kind that the fixture asks for (``BOTH``)."""
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite_url")
        return
    cluster: PostgresCluster = request.getfixturevalue("postgres_cluster")
    url = cluster.create_database()
    yield url
    cluster.drop_database(url)


@contextmanager
def current_database(request: pytest.FixtureRequest) -> Iterator[str]:
    """As :func:`empty_database`, with the newest schema: a copy of one that was upgraded once."""
    if request.param == "sqlite":
        yield request.getfixturevalue("current_sqlite_url")
        return
    cluster: PostgresCluster = request.getfixturevalue("postgres_cluster")
    url = cluster.create_database(like=request.getfixturevalue("newest_postgres"))
    yield url
    cluster.drop_database(url)


@contextmanager
def running_cluster(
    *, is_durable: bool = False, port: int | None = None
) -> Iterator[PostgresCluster]:
    """Start a cluster in a temporary folder, on a unix socket only, and stop it afterwards; with
    ``port`` on the loopback interface alone.

    Commits reach the disk only with ``is_durable``.
    """
    binaries = find_binaries()
    assert binaries is not None, "ask missing_reason() first"
    # A short path: a unix socket's name holds at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    data = folder / "data"
    if os.getuid() == 0:
        shutil.chown(folder, SYSTEM_USER)
    pg_ctl = [str(binaries / "pg_ctl"), "-D", str(data), "-w"]
    where = f"-c listen_addresses='' -k {folder}"
    if port is not None:
        where = f"-c listen_addresses=127.0.0.1 -p {port} -k ''"
    options = f"{where} -c max_connections=60 -c autovacuum=off"
    options += "" if is_durable else " -c fsync=off -c full_page_writes=off"
    try:
        _run([str(binaries / "initdb"), "-D", str(data), "-U", SYSTEM_USER, "-A", "trust", "-N"])
        start = [*pg_ctl, "-o", options, "-l", str(folder / "log"), "start"]
        stop = [*pg_ctl, "-m", "immediate", "stop"]
        _run(start)
        place = f"{folder}" if port is None else f"127.0.0.1&port={port}"
        cluster = PostgresCluster(place, start, stop)
        try:
            yield cluster
        finally:
            cluster.close()
            _run(stop)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command,
        user=SYSTEM_USER if os.getuid() == 0 else None,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, f"{command[0]}: {done.stderr}"


def _has_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
