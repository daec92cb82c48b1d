"""Named locks: one holder at a time, free again however the holder ends."""

from __future__ import annotations

import subprocess
import sys

from store import Database
from tests.api.live import wait_until

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
