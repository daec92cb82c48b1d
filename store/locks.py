"""Locks with a name that one process at a time holds, among all that share a database.

They end with their holder, however it ends: SQLite's is a lock on a file beside the database (which
cannot be shared by machines anyway), PostgreSQL's an advisory lock of one connection.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import IO, Protocol

import sqlalchemy as sa

# How soon PostgreSQL notices that the holder's machine is gone without a word (a power cut). By
# default it asks only after two hours, and until then nobody else gets the lock. Seconds of
# silence, seconds between probes, and unanswered probes; a unix socket needs none of this.
KEEPALIVES = {
    "tcp_keepalives_idle": 10,
    "tcp_keepalives_interval": 5,
    "tcp_keepalives_count": 3,
}


class NamedLock(Protocol):
    """One holder's hold on a name. Used by one thread at a time."""

    def try_take(self) -> bool:
        """Whether the lock is held now: taken now, or taken before and still held.

        A lock that was lost, as with a restart of PostgreSQL, is taken again if it is free.

        Raises:
            sqlalchemy.exc.DBAPIError, OSError: the database or its folder cannot be used.
        """
        ...

    def release(self) -> None:
        """Let others have it. Safe to call twice."""
        ...


def _private(path: str, flags: int) -> int:
    """Open ``path``, a new file as its owner's alone."""
    return os.open(path, flags, 0o600)


class FileLock:
    """A :class:`NamedLock` on one machine, on a file that its last holder removes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def try_take(self) -> bool:
        while self._file is None:
            file = open(self._path, "ab", opener=_private)  # noqa: SIM115 - held until released
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.close()
                if isinstance(error, BlockingIOError):
                    return False
                raise
            if self._is_at_path(file):
                self._file = file
            else:
                file.close()  # its holder removed it while we opened it: take the next one
        return True

    def release(self) -> None:
        if self._file is not None:
            # While it is held, or somebody may hold the next file of this name already.
            with suppress(OSError):
                self._path.unlink()
            self._file.close()
            self._file = None

    def _is_at_path(self, file: IO[bytes]) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self._path))
        except FileNotFoundError:
            return False


class AdvisoryLock:
    """A :class:`NamedLock` on PostgreSQL, held by a connection that does nothing else."""

    def __init__(self, engine: sa.Engine, name: str) -> None:
        self._engine = engine
        digest = hashlib.sha256(f"gearshift:{name}".encode()).digest()
        self._key = int.from_bytes(digest[:8], "big", signed=True)
        self._connection: sa.Connection | None = None

    def try_take(self) -> bool:
        if self._connection is not None:
            try:
                self._connection.execute(sa.select(1))
            except sa.exc.DBAPIError:
                self.release()
            else:
                return True
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        # Out of the pool, or the next user of the connection would hold the lock.
        connection.detach()
        try:
            said = (sa.func.set_config(key, str(n), False) for key, n in KEEPALIVES.items())
            connection.execute(sa.select(*said))
            query = sa.select(sa.func.pg_try_advisory_lock(self._key))
            is_taken = bool(connection.execute(query).scalar_one())
        except BaseException:
            connection.close()
            raise
        if is_taken:
            self._connection = connection
        else:
            connection.close()
        return is_taken

    def release(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            # The server ends a closed connection when it gets to it, and its locks with it.
            with suppress(sa.exc.DBAPIError):
                connection.execute(sa.select(sa.func.pg_advisory_unlock(self._key)))
            connection.close()
