"""The database and the unit of work: one transaction per use, committed once at the edge."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session, sessionmaker

from store import notices
from store.audit import AuditRepository
from store.connections import LOG_PAGES, READ_ONLY, make_engine
from store.cost_models import CostModelRepository
from store.decisions import DecisionRepository
from store.devices import DeviceRepository
from store.engines import EngineRepository
from store.errors import StoreError
from store.groundworks import GroundworkRepository
from store.idempotency import IdempotencyRepository
from store.jobs import JobRepository
from store.keys import KeyRepository
from store.loads import LoadRepository
from store.locks import AdvisoryLock, FileLock, NamedLock
from store.models import ApiKey
from store.policies import PolicyRepository
from store.recommendations import RecommendationRepository
from store.rollouts import RolloutRepository
from store.servers import ServerRepository
from store.trials import TrialRepository
from store.watched import Change, note, noted
from store.workloads import WorkloadRepository

CHECKPOINT = "PRAGMA wal_checkpoint(PASSIVE)"


@dataclass(frozen=True)
class UnitOfWork:
    """The repositories over one transaction."""

    session: Session

    @contextmanager
    def part(self) -> Iterator[None]:
        """If the block fails, what it wrote is thrown away, but nothing else of the unit."""
        with self.audit.dropped_on_error(), self.session.begin_nested():
            yield

    def commit_lazily(self) -> None:
        """Let the commit not wait until it is on the disk.

        If the machine crashes, only what was committed this way in the last second may be missing.
        SQLite always commits this way.
        """
        if self.session.get_bind().dialect.name == "postgresql":
            self.session.connection().exec_driver_sql("SET LOCAL synchronous_commit TO off")

    @cached_property
    def jobs(self) -> JobRepository:
        return JobRepository(self.session)

    @cached_property
    def trials(self) -> TrialRepository:
        return TrialRepository(self.session)

    @cached_property
    def cost_models(self) -> CostModelRepository:
        return CostModelRepository(self.session)

    @cached_property
    def groundworks(self) -> GroundworkRepository:
        return GroundworkRepository(self.session)

    @cached_property
    def workloads(self) -> WorkloadRepository:
        return WorkloadRepository(self.session)

    @cached_property
    def recommendations(self) -> RecommendationRepository:
        return RecommendationRepository(self.session)

    @cached_property
    def engines(self) -> EngineRepository:
        return EngineRepository(self.session)

    @cached_property
    def servers(self) -> ServerRepository:
        return ServerRepository(self.session)

    @cached_property
    def loads(self) -> LoadRepository:
        return LoadRepository(self.session)

    @cached_property
    def policies(self) -> PolicyRepository:
        return PolicyRepository(self.session)

    @cached_property
    def decisions(self) -> DecisionRepository:
        return DecisionRepository(self.session)

    @cached_property
    def rollouts(self) -> RolloutRepository:
        return RolloutRepository(self.session)

    @cached_property
    def devices(self) -> DeviceRepository:
        return DeviceRepository(self.session)

    @cached_property
    def audit(self) -> AuditRepository:
        return AuditRepository(self.session)

    @cached_property
    def keys(self) -> KeyRepository:
        return KeyRepository(self.session)

    @cached_property
    def idempotency(self) -> IdempotencyRepository:
        return IdempotencyRepository(self.session)


class Database:
    """One database, SQLite or PostgreSQL, by its SQLAlchemy URL. Safe to share by threads.

    Raises:
        StoreError: a URL that cannot be read, or of another kind of database.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = make_engine(url)
        self._reader = self.engine.execution_options(**{READ_ONLY: True})
        # SQLite has one writer at a time. Threads that queue here go on as soon as the one before
        # is done; SQLite itself would let each sleep up to 100 ms between two tries.
        is_sqlite = self.engine.dialect.name == "sqlite"
        self._writing: AbstractContextManager[object] = (
            threading.Lock() if is_sqlite else nullcontext()
        )
        self._listeners: list[tuple[Change, Callable[[], None]]] = []
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)
        event.listen(self._sessions, "after_flush", _note_keys)

    @contextmanager
    def begin(self) -> Iterator[UnitOfWork]:
        """A unit of work that commits when its block ends without an error, else rolls back."""
        with self._writing, self._sessions() as session:
            with session.begin():
                uow = UnitOfWork(session)
                yield uow
                session.flush()
                uow.audit.seal()
                if self.can_listen:
                    notices.tell(session)
            changes = noted(session)
        for change in changes:
            self._tell(change)

    def on_commit(self, change: Change, listener: Callable[[], None]) -> None:
        """Call ``listener`` after each commit here that brought ``change``.

        It is called on the thread that committed, and must be quick. While :meth:`listen` runs, it
        is called for commits of other processes, too.
        """
        self._listeners.append((change, listener))

    @property
    def can_listen(self) -> bool:
        """Whether this kind of database tells what other processes commit."""
        return self.engine.dialect.name == "postgresql"

    async def listen(self, hears: Callable[[], None]) -> None:
        """Call listeners for commits of other processes, too, until cancelled.

        ``hears`` is called once that has begun. Listeners are called on the event loop's thread.

        Raises:
            psycopg.OperationalError: the database cannot be reached, or is no longer.
        """
        await notices.listen(self.engine, hears, self._tell)

    @contextmanager
    def read(self) -> Iterator[UnitOfWork]:
        """A unit of work for queries; whatever it changed is thrown away."""
        with Session(self._reader, expire_on_commit=False, autoflush=False) as session:
            yield UnitOfWork(session)

    def lock(self, name: str) -> NamedLock:
        """A lock that one process at a time holds among all that use this database."""
        file = self.engine.url.database
        if self.engine.dialect.name == "sqlite" and file is not None:
            return FileLock(Path(f"{file}.{name}.lock"))
        return AdvisoryLock(self.engine, name)

    def require_reachable(self) -> None:
        """Open one connection.

        Raises:
            StoreError: the database cannot be opened, with its own words and no password.
        """
        try:
            with self.engine.connect():
                pass
        except sa.exc.DBAPIError as error:
            shown = self.engine.url.render_as_string(hide_password=True)
            raise StoreError(f"database {shown} cannot be opened: {error.orig}") from error

    def require_writable(self) -> None:
        """Write one row as it is, and commit.

        Raises:
            sqlalchemy.exc.DBAPIError: the database cannot be written.
        """
        with self.begin() as uow:
            uow.session.execute(sa.text("UPDATE alembic_version SET version_num = version_num"))

    def checkpoint(self) -> None:
        """Bring what was committed from SQLite's log into the database file, beside all writers.

        If it were left to SQLite, a commit would do so every thousand pages and wait for the disk.
        Other databases do it by themselves, so this does nothing there.
        """
        if self.engine.dialect.name != "sqlite":
            return
        with closing(self.engine.raw_connection()) as connection:
            cursor = connection.cursor()
            cursor.execute(CHECKPOINT)
            (found,) = cursor.fetchall()  # whether it was kept off, pages in the log, pages done
            if found[1] > LOG_PAGES:
                # Only what came meanwhile is left. While nobody writes, that is brought over, and
                # the log starts anew.
                with self._writing:
                    cursor.execute(CHECKPOINT)
                    cursor.fetchall()

    def close(self) -> None:
        """Close the connections that nobody uses now, and each other one at the end of its use."""
        # The pool that is left behind would keep those that come back to it, open for good.
        event.listen(self.engine, "checkin", _close_late)
        self.engine.dispose()

    def _tell(self, change: Change) -> None:
        for wanted, listener in self._listeners:
            if wanted is change:
                listener()


def _close_late(_connection: object, record: sa.pool.ConnectionPoolEntry) -> None:
    record.invalidate()


def _note_keys(session: Session, _context: object) -> None:
    changed = (*session.new, *session.dirty, *session.deleted)
    if any(isinstance(row, ApiKey) for row in changed):
        note(session, Change.KEYS)
