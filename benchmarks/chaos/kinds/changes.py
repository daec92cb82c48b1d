"""Kills in the middle of a change: a reshape, an apply, a cancelled job, two writers at once."""

from __future__ import annotations

import contextlib
import random
import threading
import time

import psutil

from benchmarks.chaos.kinds.kind import Kind
from benchmarks.chaos.ledger import Change
from benchmarks.chaos.world import SERVICES, World

PLANS = (
    {"dp": 1, "pp": 1, "sp": 1, "tp": 2},
    {"dp": 1, "pp": 1, "sp": 1, "tp": 1},
    {"dp": 1, "pp": 1, "sp": 2, "tp": 1},
    {"dp": 2, "pp": 1, "sp": 1, "tp": 1},
    {"dp": 1, "pp": 2, "sp": 1, "tp": 1},
)
RESHAPE_S = 0.5


def _reshape(world: World, rng: random.Random) -> Change:
    """Ask the control plane for another plan of the real engine, and leave it under way."""
    asked = {"plan": rng.choice(PLANS), "shift": {"enabled": False}}
    url = world.urls[rng.choice(SERVICES)]
    change = world.ledger.patch(url, world.engine_id("real"), asked)
    time.sleep(rng.uniform(0.0, RESHAPE_S))
    return change


def _reshape_rank(world: World, rng: random.Random) -> None:
    _reshape(world, rng)
    workers = world.children["real"].descendants("engine.rank.worker")
    if workers:
        with contextlib.suppress(psutil.NoSuchProcess):
            rng.choice(workers).kill()


def _reshape_front(world: World, rng: random.Random) -> None:
    _reshape(world, rng)
    for front in world.fronts("real"):
        front.kill()


def _reshape_engine(world: World, rng: random.Random) -> None:
    _reshape(world, rng)
    world.kill("real")


def _reshape_service(world: World, rng: random.Random) -> None:
    """The one that the real engine obeys."""
    _reshape(world, rng)
    world.kill("service-a")


def _apply_service(world: World, rng: random.Random) -> None:
    """Apply a recommendation, and kill the service that is told so."""
    name = rng.choice(SERVICES)
    engine_id = world.engine_id("paced")
    rows = world.ledger.read("/v1/recommendations?limit=20")
    if not rows:
        return
    row = rng.choice(rows)
    thread = threading.Thread(
        target=world.ledger.apply, args=(world.urls[name], str(row["id"]), engine_id), daemon=True
    )
    thread.start()
    time.sleep(rng.uniform(0.0, 0.03))
    world.kill(name)
    thread.join()


def _apply_engine(world: World, rng: random.Random) -> None:
    """Apply a recommendation, and kill the engine that is about to obey."""
    rows = world.ledger.read("/v1/recommendations?limit=20")
    if not rows:
        return
    url = world.urls[rng.choice(SERVICES)]
    world.ledger.apply(url, str(rng.choice(rows)["id"]), world.engine_id("paced"))
    time.sleep(rng.uniform(0.0, 0.1))
    world.kill("paced")


def _patch_at_once(world: World, rng: random.Random) -> None:
    """Both control planes are told something at once; a version is one or the other."""
    engine_id = world.engine_id(rng.choice(("real", "paced")))
    threads = [
        threading.Thread(
            target=world.ledger.patch,
            args=(
                world.urls[SERVICES[n % 2]],
                engine_id,
                {
                    "caps": {
                        "max_num_seqs": rng.randrange(16, 64),
                        "max_num_batched_tokens": rng.randrange(512, 2048),
                    }
                },
            ),
            daemon=True,
        )
        for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


REAL, PACED = frozenset({"real"}), frozenset({"paced"})
KINDS = (
    Kind(name="reshape, rank killed", inject=_reshape_rank, weight=5),
    Kind(name="reshape, front killed", inject=_reshape_front, weight=2, cuts=REAL),
    Kind(name="reshape, engine killed", inject=_reshape_engine, weight=3, cuts=REAL),
    Kind(name="reshape, service killed", inject=_reshape_service, weight=4),
    Kind(name="apply, service killed", inject=_apply_service, weight=4),
    Kind(name="apply, engine killed", inject=_apply_engine, weight=3, cuts=PACED),
    Kind(name="patches at once", inject=_patch_at_once),
)
