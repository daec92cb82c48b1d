"""Which worker this is among those of one database, and what became of the others' jobs.

DBOS lets a worker go on with what one of its name began. Two of one name would both go on with it:
a name is a lock, and one whose lock is free belongs to nobody who lives.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

import structlog
from dbos import DBOS

from store import Database
from store.locks import NamedLock

# A worker that was just killed may still be the holder for PostgreSQL.
WAIT_S = 2.0
LOOK_EVERY_S = 0.1
ORPHANS_EVERY_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A worker's name, and the lock that makes it its own."""

    name: str
    lock: NamedLock


def take_identity(database: Database, wanted: str) -> Identity:
    """``wanted`` if no living worker has it, else the first free of ``wanted-2``, ``-3``, ..."""
    for number in itertools.count(1):
        name = wanted if number == 1 else f"{wanted}-{number}"
        lock = _lock(database, name)
        until_s = time.monotonic() + (WAIT_S if number == 1 else 0.0)
        while not (is_taken := lock.try_take()) and time.monotonic() < until_s:
            time.sleep(LOOK_EVERY_S)
        if is_taken:
            return Identity(name=name, lock=lock)
    raise AssertionError("counting has no end")


class Orphans:
    """Puts running jobs that nobody runs back into the queue.

    Those are the jobs of workers that have ended, and those of this one that are not ``underway``:
    the database was away when the workflow engine wanted to write down how far they are.
    """

    def __init__(self, database: Database, own_name: str, queue: str, underway: set[str]) -> None:
        self._database = database
        self._own_name = own_name
        self._queue = queue
        self._underway = underway
        self._next_s = 0.0
        # A job is taken up a moment before it is under way: one look is not enough.
        self._suspected: set[str] = set()

    def look(self) -> None:
        """Look every few seconds."""
        if time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + ORPHANS_EVERY_S
        running = DBOS.list_workflows(status="PENDING", load_input=False, load_output=False)
        names = {flow.executor_id for flow in running if flow.executor_id}
        for name in sorted(names - {self._own_name}):
            self._recover(name)
        own = {flow.workflow_id for flow in running if flow.executor_id == self._own_name}
        self._resume(own - self._underway)

    def _recover(self, name: str) -> None:
        """Take over the jobs of the worker ``name``, if it has ended."""
        lock = _lock(self._database, name)
        if lock.try_take():
            try:
                structlog.get_logger("api.jobs").warning("worker has ended", worker=name)
                DBOS._recover_pending_workflows([name])
            finally:
                lock.release()

    def _resume(self, idle: set[str]) -> None:
        """Run those again that were idle at the last look, too."""
        again, self._suspected = idle & self._suspected, idle
        for job_id in sorted(again):
            structlog.get_logger("api.jobs").warning("job is run again", job=job_id)
            DBOS.resume_workflow(job_id, queue_name=self._queue)


def _lock(database: Database, worker: str) -> NamedLock:
    return database.lock(f"worker-{worker}")
