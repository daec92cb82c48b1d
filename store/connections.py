"""Connections to SQLite and PostgreSQL, with the settings that Gearshift relies on."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from store.errors import StoreError

SQLITE_BUSY_MS = 30_000
CONNECT_S = 5
READ_ONLY = "gearshift_read_only"
# Pages of SQLite's write-ahead log (4 KiB each). :meth:`Database.checkpoint` empties a log of more
# than LOG_PAGES. If nobody calls it, a commit does so at MOST_LOG_PAGES, which a service that does
# never reaches.
LOG_PAGES = 2_000
MOST_LOG_PAGES = 16_000
# The part of a URL's text that may hold a user and a password, even if the URL is malformed.
SECRET_PART = re.compile(r"//.*@", re.DOTALL)


def make_engine(url: str) -> sa.Engine:
    """An engine with the connection settings Gearshift relies on.

    SQLite: write-ahead log, foreign keys on, a busy timeout, and writers that take the write lock
    when they begin. (A reader that starts to write half-way fails at once with "database is
    locked", whatever the timeout.)

    Raises:
        StoreError: a URL that cannot be read, or of another kind of database.
    """
    parsed = read_url(url)
    match parsed.get_backend_name():
        case "sqlite":
            if parsed.database in (None, "", ":memory:"):
                raise StoreError("an in-memory SQLite cannot be shared; name a file")
            engine = sa.create_engine(parsed)
            event.listen(engine, "do_connect", _open_sqlite)
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
            return engine
        case "postgresql":
            return sa.create_engine(
                parsed.set(drivername="postgresql+psycopg"),
                pool_pre_ping=True,
                pool_size=10,
                connect_args={"connect_timeout": CONNECT_S},
            )
        case other:
            raise StoreError(f"database {other!r} is not supported; use sqlite or postgresql")


def read_url(url: str) -> sa.URL:
    """The parts of a database URL.

    Raises:
        StoreError: it has none; nothing of a password is told.
    """
    try:
        return sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):  # the latter for a port that is none
        # Say nothing of the error: what is no valid port may be the end of a password.
        shown = SECRET_PART.sub("//***@", url)
        raise StoreError(
            f"database URL {shown!r} cannot be read: write it as in sqlite:///FILE or "
            "postgresql://USER:PASSWORD@HOST:PORT/NAME, where signs in a password are as in %40 "
            "for @"
        ) from None


def _open_sqlite(
    _dialect: sa.Dialect, _record: Any, arguments: list[Any], options: dict[str, Any]
) -> None:
    if options.get("uri"):  # such a path may name more than a file
        return
    make_private(arguments[0])
    # SQLite would open it read-only, and keep it so for this whole process while one of its
    # connections is open, even once the disk can be written again.
    if os.path.exists(arguments[0]) and not os.access(arguments[0], os.W_OK, effective_ids=True):
        error = sqlite3.OperationalError(f"{arguments[0]} cannot be written")
        error.sqlite_errorname = "SQLITE_READONLY"
        raise error


def make_private(path: str) -> None:
    """Let only the owner read a new file at ``path``, and what SQLite makes beside it.

    It holds hashes of keys and everything of the service. An existing file keeps its mode.
    """
    with contextlib.suppress(OSError):  # the database says what is wrong with such a path
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy's begin event opens the transactions
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={SQLITE_BUSY_MS}")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute(f"PRAGMA wal_autocheckpoint={MOST_LOG_PAGES}")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    is_reader = connection.get_execution_options().get(READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if is_reader else "BEGIN IMMEDIATE")
