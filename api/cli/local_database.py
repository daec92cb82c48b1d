"""The service's database, as a command on the same machine opens it."""

from __future__ import annotations

from api.cli.common import log
from api.web.settings import ServiceSettings
from migrations import runner
from store import Database, StoreError


def open_database() -> Database:
    """The database that the environment names, else the file in the data folder.

    SQLite is brought to the newest schema.

    Raises:
        StoreError: it cannot be opened, or a PostgreSQL schema is not the newest.
    """
    settings = ServiceSettings()
    try:
        database = Database(settings.effective_database_url)
    except OSError as error:
        raise StoreError(f"data folder {error.filename}: {error.strerror}") from error
    try:
        database.require_reachable()
        if settings.is_sqlite and not runner.check(database.engine).is_current:
            runner.upgrade(database.engine)
        runner.require_current(database.engine)
    except BaseException:
        database.close()
        raise
    return database


def find_database(what: str) -> Database | None:
    """The same, or None where it cannot be opened, with a warning that ``what`` is not kept."""
    try:
        return open_database()
    except StoreError as error:
        log(f"warning: {what} not kept: {error}")
        return None
