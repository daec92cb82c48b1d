"""Two faults at once, as they come in bad nights."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence

from benchmarks.chaos.kinds.kind import Kind
from benchmarks.chaos.world import World

# Each of them loses no request by itself, and none undoes the other.
PARTS = (
    "rank killed",
    "service killed",
    "worker killed",
    "both workers killed",
    "clients gone",
    "clock jumps",
    "wire to the control plane cut",
    "disk full",
    "database locked",
    "database killed",
)


def pair_of(kinds: Sequence[Kind]) -> Kind:
    """A kind that throws two of ``kinds`` at the same time."""
    parts = [kind for kind in kinds if kind.name in PARTS]

    def inject(world: World, rng: random.Random) -> None:
        possible = [kind for kind in parts if kind.missing(world) is None]
        threads = []
        for kind in rng.sample(possible, 2):
            own = random.Random(rng.random())
            threads.append(threading.Thread(target=_guarded, args=(kind, world, own), daemon=True))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return Kind(name="two at once", inject=inject, weight=8, with_job=True)


def _guarded(kind: Kind, world: World, rng: random.Random) -> None:
    try:
        kind.inject(world, rng)
    except Exception as error:
        world.faults.append(f"{kind.name} could not be thrown: {error!r}")
