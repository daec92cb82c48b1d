"""Named locks: one holder at a time, free again however the holder ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

from store import Database
from store.locks import KEEPALIVES, AdvisoryLock
from tests.postgres import missing_reason, running_cluster
from tests.waiting import wait_until
from tuner.servers.process import free_port

HOLD = """
import sys, time
from store import Database
lock = Database(sys.argv[1]).lock("loop")
assert lock.try_take()
print("held", flush=True)
time.sleep(600)
"""


def test_one_holds_a_lock_until_it_lets_go(database: Database) -> None:
    first, second = database.lock("loop"), database.lock("loop")
    another = database.lock("another")
    assert first.try_take()
    assert first.try_take(), "the holder still holds it"
    assert not second.try_take()
    assert another.try_take()
    another.release()
    first.release()
    first.release()
    assert second.try_take()
    assert not first.try_take()
    second.release()


def test_the_lock_of_a_killed_process_is_free(database: Database) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, database.engine.url.render_as_string(hide_password=False)],
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        lock = database.lock("loop")
        assert not lock.try_take()
    finally:
        holder.kill()
        holder.communicate(timeout=60)
    wait_until(lock.try_take)
    lock.release()


@pytest.mark.slow
@pytest.mark.skipif(missing_reason() is not None, reason=str(missing_reason()))
def test_the_lock_of_a_machine_that_lost_its_power_is_free_within_a_minute() -> None:
    """It says nothing any more: PostgreSQL has to ask whether it is there."""
    with running_cluster(port=free_port()) as cluster:
        database = Database(cluster.create_database())
        lock = database.lock("loop")
        assert isinstance(lock, AdvisoryLock)
        assert lock.try_take()
        held = lock._connection
        assert held is not None
        told = (held.exec_driver_sql(f"SHOW {name}").scalar_one() for name in KEEPALIVES)
        silent_s, between_s, count = (int(str(value).removesuffix("s")) for value in told)
        assert 0 < silent_s + between_s * count < 60
        lock.release()
        database.close()
