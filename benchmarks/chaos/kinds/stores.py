"""Databases, disks, clocks and wires that fail for a while."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import httpx

from benchmarks.chaos import sandbox
from benchmarks.chaos.databases import PostgresServer, SqliteFile
from benchmarks.chaos.kinds.kind import AWAY_S, Kind, needs_disk, only
from benchmarks.chaos.relay import HURTS
from benchmarks.chaos.world import SERVICES, World, wait_until
from migrations.runner import check, upgrade
from store import Database

READY_S = 10.0
OLD_REVISION = "0002"
JUMPS_S = (3600, -3600, 86_400, -600)


def _pause(rng: random.Random) -> None:
    time.sleep(rng.uniform(*AWAY_S))


def _kill_database(world: World, rng: random.Random) -> None:
    assert isinstance(world.db, PostgresServer)
    world.db.kill()
    _pause(rng)


def _kill_backend(world: World, rng: random.Random) -> None:
    assert isinstance(world.db, PostgresServer)
    world.db.kill_backend(rng.random())


def _database_away(world: World, rng: random.Random) -> None:
    assert isinstance(world.db, PostgresServer)
    world.db.stop()
    _pause(rng)


def _stop_database(world: World, rng: random.Random) -> None:
    assert isinstance(world.db, PostgresServer)
    world.db.signal_all(signal.SIGSTOP)
    try:
        _pause(rng)
    finally:
        world.db.signal_all(signal.SIGCONT)


def _lock_database(world: World, rng: random.Random) -> None:
    assert isinstance(world.db, SqliteFile)
    with world.db.locked():
        _pause(rng)


def _read_only_postgres(world: World, rng: random.Random) -> None:
    """As a server after a fail-over: nothing can be written, and nobody must say ready."""
    assert isinstance(world.db, PostgresServer)
    world.db.set_read_only(is_read_only=True)
    try:
        _expect_not_ready(world)
        _pause(rng)
    finally:
        world.db.set_read_only(is_read_only=False)


def _read_only_sqlite(world: World, rng: random.Random) -> None:
    """As after a restart of a machine with a broken disk: a service does not start, or says that it
    is not ready, and is whole again when the disk is."""
    for name in SERVICES:
        world.kill(name)
    if not wait_until(lambda: not sandbox.find_orphans(_known(world)), READY_S):
        world.faults.append("a worker lives on without its service")
    if not wait_until(lambda: _is_remounted(world), READY_S):
        world.faults.append("somebody still writes although both services were killed")
        return
    try:
        for name in SERVICES:
            child = world.intend(name)
            child.spawn()
            try:
                child.wait_ready()
            except RuntimeError:
                child.kill()
            else:
                _expect_not_ready(world, name)
        _pause(rng)
    finally:
        sandbox.remount(world.disk, is_writable=True)


def _is_remounted(world: World) -> bool:
    try:
        sandbox.remount(world.disk, is_writable=False)
    except RuntimeError:  # busy
        return False
    return True


def _known(world: World) -> list[int]:
    return [*(child.pid for child in world.children.values()), *world.db.pids]


def _fill_disk(world: World, rng: random.Random) -> None:
    with world.full_disk():
        _expect_not_ready(world)
        _pause(rng)


def _expect_not_ready(world: World, *names: str) -> None:
    for name in names or SERVICES:
        if not wait_until(partial(_is_not_ready, world, name), READY_S):
            world.faults.append(f"{name} says {_status(world, name)} at /readyz")


def _is_not_ready(world: World, name: str) -> bool:
    # One that another fault of the same moment has ended says nothing, and is not ready either.
    return _status(world, name) == 503 or not world.children[name].is_running


def _status(world: World, name: str) -> int | None:
    try:
        return httpx.get(f"{world.urls[name]}/readyz", timeout=5, trust_env=False).status_code
    except httpx.TransportError:
        return None


def _jump_clock(world: World, rng: random.Random) -> None:
    """The clock of one control plane and its worker jumps, and comes back."""
    world.clock.shift(rng.choice(JUMPS_S))
    try:
        _pause(rng)
    finally:
        world.clock.shift(0)


def _hurt_wire(hurt: str, world: World, rng: random.Random) -> None:
    """The wire is cut, or falls silent, and mends."""
    world.relay.set_hurt(hurt, is_hurt=True)
    try:
        _pause(rng)
    finally:
        world.relay.set_hurt(hurt, is_hurt=False)


def _kill_migration(world: World, rng: random.Random) -> None:
    """A migration is killed on its way; the next one ends at the newest schema all the same."""
    with tempfile.TemporaryDirectory() as folder:
        url = world.db.new_url(Path(folder))
        database = Database(url)
        upgrade(database.engine, OLD_REVISION)
        for _ in range(3):
            command = [sys.executable, "-m", "api.cli.main", "db", "upgrade", "--database-url", url]
            migration = subprocess.Popen(
                [*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            try:
                migration.wait(rng.uniform(0.3, 1.0))
            except subprocess.TimeoutExpired:
                migration.kill()
            said, _err = migration.communicate()
            if said:
                assert json.loads(said)["current"], "it says where the schema stands"
        upgrade(database.engine)
        status = check(database.engine)
        database.close()
    if not status.is_current:
        world.faults.append(f"a killed migration left {status.current}: {status.differences}")


def _no_clock(world: World) -> str | None:
    return None if world.clock.is_there else "there is no C compiler"


def _disk_of_sqlite(world: World) -> str | None:
    return only("sqlite")(world) or needs_disk(world)


POSTGRES = only("postgresql")
KINDS = (
    Kind(name="database killed", with_job=True, inject=_kill_database, weight=4, missing=POSTGRES),
    Kind(
        name="database session killed",
        with_job=True,
        inject=_kill_backend,
        weight=4,
        missing=POSTGRES,
    ),
    Kind(name="database away", with_job=True, inject=_database_away, weight=4, missing=POSTGRES),
    Kind(name="database stopped", with_job=True, inject=_stop_database, weight=4, missing=POSTGRES),
    Kind(name="database locked", with_job=True, inject=_lock_database, missing=only("sqlite")),
    Kind(
        name="database read-only",
        with_job=True,
        inject=_read_only_postgres,
        weight=3,
        missing=POSTGRES,
    ),
    Kind(name="disk read-only", inject=_read_only_sqlite, weight=2, missing=_disk_of_sqlite),
    Kind(name="disk full", with_job=True, inject=_fill_disk, missing=needs_disk),
    Kind(name="clock jumps", with_job=True, inject=_jump_clock, missing=_no_clock),
    *(
        Kind(name=f"wire to the control plane {hurt}", inject=partial(_hurt_wire, hurt))
        for hurt in HURTS
    ),
    Kind(name="migration killed", inject=_kill_migration, weight=2),
)
