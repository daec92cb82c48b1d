"""A database that is away: how it is recognised, and waited out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import sqlalchemy as sa
import structlog

T = TypeVar("T")
# Classes of SQLSTATE that pass: connection exceptions, no resources (a full disk, too many
# clients), operator intervention (shut down, starting up), rolled back for another transaction.
AWAY_STATES = ("08", "53", "57P", "40")
# Names of SQLite errors that pass begin so: locked, full or broken disk, no file, not writable.
AWAY_NAMES = (
    "SQLITE_BUSY",
    "SQLITE_LOCKED",
    "SQLITE_FULL",
    "SQLITE_IOERR",
    "SQLITE_CANTOPEN",
    "SQLITE_READONLY",
)


def is_outage(error: BaseException) -> bool:
    """Whether the database, for now, is at fault, and not what was asked of it."""
    if isinstance(error, sa.exc.TimeoutError):  # no free connection
        return True
    if not isinstance(error, sa.exc.DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    name = getattr(error.orig, "sqlite_errorname", None)
    if name is not None:
        return str(name).startswith(AWAY_NAMES)
    if not isinstance(error, (sa.exc.OperationalError, sa.exc.InterfaceError)):
        return False
    state = getattr(error.orig, "sqlstate", None)
    return state is None or str(state).startswith(AWAY_STATES)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Runs what needs the database until the database is there; pauses grow to the longest.

    ``given_up`` ends the waiting: the outage's error then comes out.
    """

    given_up: threading.Event = field(default_factory=threading.Event)
    first_pause_s: float = 0.1
    longest_pause_s: float = 5.0

    def run(self, operation: Callable[[], T]) -> T:
        """``operation``'s answer. It may run several times, even after one that was committed."""
        pause_s = self.first_pause_s
        while True:
            try:
                return operation()
            except sa.exc.SQLAlchemyError as error:
                if not is_outage(error):
                    raise
                structlog.get_logger("store").warning(
                    "database is away; waiting", error=str(error).splitlines()[0], pause_s=pause_s
                )
                if self.given_up.wait(pause_s):
                    raise
                pause_s = min(2 * pause_s, self.longest_pause_s)
