"""The database of the world: a SQLite file, or a PostgreSQL server, and what can befall it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import sqlalchemy as sa

USER = "postgres"
START_S = 60.0


class SqliteFile:
    """A file that all services of the world share."""

    kind = "sqlite"
    disk_mib = 48

    def __init__(self, folder: Path) -> None:
        self._path = folder / "gearshift.db"
        self.pids: list[int] = []

    @property
    def url(self) -> str:
        return f"sqlite:///{self._path}"

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def revive(self) -> None:
        pass

    def new_url(self, folder: Path) -> str:
        return f"sqlite:///{folder / f'{secrets.token_hex(4)}.db'}"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Another program holds the write lock while the block runs."""
        with contextlib.closing(sqlite3.connect(self._path, timeout=20)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
            other.rollback()


class PostgresServer:
    """A server on a unix socket, the campaign's own child."""

    kind = "postgresql"
    disk_mib = 320

    def __init__(self, folder: Path, log: Path) -> None:
        found = shutil.which("initdb")
        installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if found is None and not installed:
            raise RuntimeError("PostgreSQL (initdb) is not installed")
        self._binaries = Path(found).resolve().parent if found else installed[-1].parent
        self._folder = folder / "pg"
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self._url("gearshift")

    @property
    def pids(self) -> list[int]:
        return [] if self._process is None else [self._process.pid]

    def start(self) -> None:
        self._folder.mkdir()
        if os.getuid() == 0:
            shutil.chown(self._folder, USER)
        data = str(self._folder / "data")
        self._run("initdb", "-D", data, "-U", USER, "-A", "trust", "-N", "--no-instructions")
        self._spawn()
        self._execute("CREATE DATABASE gearshift")

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(START_S)

    def revive(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            self._spawn()

    def new_url(self, folder: Path) -> str:  # noqa: ARG002 - a file's place
        name = f"t{secrets.token_hex(6)}"
        self._execute(f"CREATE DATABASE {name}")
        return self._url(name)

    def kill(self) -> None:
        """SIGKILL to the postmaster; its children notice."""
        assert self._process is not None, "it has been started"
        self._process.kill()
        self._process.wait()

    def kill_backend(self, number: float) -> None:
        """SIGKILL to one session's process, which makes the server start over."""
        found = [p for p in self._sessions() if "idle" in p.cmdline()[0] or len(p.cmdline()) == 1]
        if found:
            found[int(number * len(found))].kill()

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to every process of the server."""
        assert self._process is not None, "it has been started"
        for process in [psutil.Process(self._process.pid), *self._sessions()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def set_read_only(self, *, is_read_only: bool) -> None:
        """Make every new transaction one that may only read, or not."""
        value = "on" if is_read_only else "off"
        with sa.create_engine(self._url("postgres")).connect() as connection:
            auto = connection.execution_options(isolation_level="AUTOCOMMIT")
            auto.exec_driver_sql("SET default_transaction_read_only = off")
            auto.exec_driver_sql(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
            auto.exec_driver_sql("SELECT pg_reload_conf()")

    def _sessions(self) -> list[psutil.Process]:
        assert self._process is not None, "it has been started"
        with contextlib.suppress(psutil.NoSuchProcess):
            return list(psutil.Process(self._process.pid).children())
        return []

    def _url(self, database: str) -> str:
        return f"postgresql+psycopg://{USER}@/{database}?host={self._folder}"

    def _spawn(self) -> None:
        """Start it; what a killed one left needs a moment to go."""
        command = [str(self._binaries / "postgres"), "-D", str(self._folder / "data")]
        command += ["-k", str(self._folder), "-c", "listen_addresses=", "-c", "fsync=off"]
        command += ["-c", "max_wal_size=64MB", "-c", "min_wal_size=32MB"]
        end_s = time.monotonic() + START_S
        while True:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    command, user=_user(), cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            while self._process.poll() is None:
                if self._answers():
                    return
                if time.monotonic() > end_s:
                    break
                time.sleep(0.05)
            if time.monotonic() > end_s:
                raise RuntimeError(f"PostgreSQL does not start; see {self._log}")
            time.sleep(0.2)

    def _answers(self) -> bool:
        engine = sa.create_engine(self._url("postgres"), poolclass=sa.NullPool)
        try:
            with engine.connect():
                return True
        except sa.exc.OperationalError:  # it is starting
            return False

    def _execute(self, statement: str) -> None:
        engine = sa.create_engine(self._url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
        engine.dispose()

    def _run(self, name: str, *arguments: str) -> None:
        command = [str(self._binaries / name), *arguments]
        done = subprocess.run(
            command, user=_user(), cwd="/", capture_output=True, text=True, check=False, timeout=60
        )
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stderr.strip()}")


def _user() -> str | None:
    return USER if os.getuid() == 0 else None
