"""One kind of fault."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.chaos.world import World

# A fault that is there for a while stays this long.
AWAY_S = (1.0, 2.5)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """``inject`` returns when the fault is over: what follows is recovery.

    Requests in flight at the engines in ``cuts`` may end with an error that their client sees; all
    others must complete. ``with_job``: a tuning job is surely under way. ``missing`` tells why a
    world cannot have this fault.
    """

    name: str
    inject: Callable[[World, random.Random], None]
    weight: int = 4
    cuts: frozenset[str] = frozenset()
    with_job: bool = False
    missing: Callable[[World], str | None] = lambda _: None


def only(kind: str) -> Callable[[World], str | None]:
    """A reason for worlds of another database."""
    return lambda world: None if world.db.kind == kind else f"for {kind} only"


def needs_disk(world: World) -> str | None:
    return None if world.has_disk else "no disk can be mounted here"
