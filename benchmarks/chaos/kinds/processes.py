"""Processes that are killed or stopped."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Callable, Iterable
from functools import partial

import psutil

from benchmarks.chaos.children import living
from benchmarks.chaos.kinds.kind import AWAY_S, Kind
from benchmarks.chaos.world import ENGINES, SERVICES, World, wait_until

LEADER_S = 20.0
DIES_S = 20.0


def _kill_one(processes: Iterable[psutil.Process], rng: random.Random) -> None:
    found = list(processes)
    if found:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim = rng.choice(found)
            victim.kill()


def _stop_for_a_while(processes: Iterable[psutil.Process], rng: random.Random) -> None:
    """SIGSTOP, a pause, SIGCONT."""
    stopped = list(processes)
    _signal(stopped, signal.SIGSTOP)
    try:
        time.sleep(rng.uniform(*AWAY_S))
    finally:
        _signal(stopped, signal.SIGCONT)


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _kill_rank(world: World, rng: random.Random) -> None:
    _kill_one(world.ranks(), rng)


def _kill_all_ranks(world: World, _: random.Random) -> None:
    _signal(world.ranks(), signal.SIGKILL)


def _kill_spare(world: World, rng: random.Random) -> None:
    ranks = {rank.pid for rank in world.ranks()}
    workers = world.children["real"].descendants("engine.rank.worker")
    _kill_one([w for w in workers if w.pid not in ranks], rng)


def _stop_rank(world: World, rng: random.Random) -> None:
    found = world.ranks()
    _stop_for_a_while([rng.choice(found)] if found else [], rng)


def _kill_front(name: str, world: World, rng: random.Random) -> None:
    _kill_one(world.fronts(name), rng)


def _stop_front(world: World, rng: random.Random) -> None:
    _stop_for_a_while(world.fronts(rng.choice(ENGINES)), rng)


def _kill_front_and_rank(world: World, rng: random.Random) -> None:
    _kill_front("real", world, rng)
    _kill_rank(world, rng)


def _kill_engine(name: str, world: World, _: random.Random) -> None:
    """SIGKILL to the parent: whatever it started must end by itself."""
    below = world.children[name].descendants()
    world.kill(name)
    if not wait_until(lambda: not living(below), DIES_S):
        world.faults.append(f"{name}: {living(below)} live on without their parent")


def _end_engine(world: World, rng: random.Random) -> None:
    """SIGTERM: it takes no new requests and finishes those it has."""
    name = rng.choice(ENGINES)
    code = world.intend(name).terminate()
    if code != 0:
        world.faults.append(f"{name} ended with exit code {code} when asked to end")


def _kill_service(world: World, rng: random.Random) -> None:
    world.kill(rng.choice(SERVICES))


def _kill_both_services(world: World, rng: random.Random) -> None:
    for name in SERVICES:
        world.kill(name)
    time.sleep(rng.uniform(*AWAY_S))


def _service_away(world: World, rng: random.Random) -> None:
    """Ended in good order, and not there for a while."""
    name = rng.choice(SERVICES)
    code = world.intend(name).terminate()
    if code != 0:
        world.faults.append(f"{name} ended with exit code {code} when asked to end")
    time.sleep(rng.uniform(*AWAY_S))


def _stop_service(world: World, rng: random.Random) -> None:
    _stop_for_a_while([psutil.Process(world.children[rng.choice(SERVICES)].pid)], rng)


def _kill_leader(world: World, _: random.Random) -> None:
    """Each control plane in turn: the other one leads while it is away."""
    for name in SERVICES:
        world.kill(name)
        if not wait_until(world.has_leader, LEADER_S):
            world.faults.append(f"nobody leads {LEADER_S:g} s after {name} was killed")
        world.revive()


def _kill_worker(world: World, rng: random.Random) -> None:
    _kill_one(world.workers(rng.choice(SERVICES)), rng)


def _kill_both_workers(world: World, _: random.Random) -> None:
    for name in SERVICES:
        _signal(world.workers(name), signal.SIGKILL)


def _cancel_and_kill_worker(world: World, rng: random.Random) -> None:
    """A job is cancelled, and the workers are killed before they can say that it stopped."""
    world.ledger.cancel_one(rng)
    time.sleep(rng.uniform(0.0, 0.1))
    _kill_both_workers(world, rng)


def _stop_worker(world: World, rng: random.Random) -> None:
    _stop_for_a_while(world.workers(rng.choice(SERVICES)), rng)


def _named(inject: Callable[[str, World, random.Random], None], name: str) -> Callable[..., None]:
    return partial(inject, name)


REAL, PACED = frozenset({"real"}), frozenset({"paced"})
KINDS = (
    Kind(name="rank killed", inject=_kill_rank, weight=7),
    Kind(name="all ranks killed", inject=_kill_all_ranks, weight=4),
    Kind(name="spare rank killed", inject=_kill_spare, weight=3),
    Kind(name="rank stopped", inject=_stop_rank),
    Kind(name="front killed", inject=_named(_kill_front, "real"), weight=4, cuts=REAL),
    Kind(name="paced front killed", inject=_named(_kill_front, "paced"), weight=4, cuts=PACED),
    Kind(name="front stopped", inject=_stop_front),
    Kind(name="front and rank killed", inject=_kill_front_and_rank, weight=2, cuts=REAL),
    Kind(name="engine killed", inject=_named(_kill_engine, "real"), weight=4, cuts=REAL),
    Kind(name="paced engine killed", inject=_named(_kill_engine, "paced"), weight=4, cuts=PACED),
    Kind(name="engine told to end", inject=_end_engine, weight=4),
    Kind(name="service killed", with_job=True, inject=_kill_service, weight=7),
    Kind(name="both services killed", with_job=True, inject=_kill_both_services, weight=4),
    Kind(name="service away", with_job=True, inject=_service_away, weight=4),
    Kind(name="service stopped", with_job=True, inject=_stop_service),
    Kind(name="leader killed", with_job=True, inject=_kill_leader, weight=3),
    Kind(name="worker killed", with_job=True, inject=_kill_worker, weight=7),
    Kind(name="both workers killed", with_job=True, inject=_kill_both_workers, weight=4),
    Kind(
        name="job cancelled, workers killed",
        with_job=True,
        inject=_cancel_and_kill_worker,
        weight=5,
    ),
    Kind(name="worker stopped", with_job=True, inject=_stop_worker),
)
