"""Question: how much CPU does the control plane spend on one heartbeat, long poll and /healthz?

CPU of the service's process alone, so that other programs on the machine change it little. With
several ``--tree`` (checkouts of this repository), each has its service, and they are asked in
turns: the ratio is what a change is worth.

    python -m benchmarks.heartbeat_cpu --tree . --tree ../before --rounds 5
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from benchmarks.control_plane_scale import (
    connect_engine,
    cpu_s,
    prepare,
    running_service,
    until_ready,
)
from benchmarks.many_engines import Connection, Crowd, Engine, Times, encode
from tests.postgres import running_cluster

CONNECTIONS = 50
POLL_S = 1.0


@dataclass(frozen=True)
class Asked:
    """A service, and the engines that ask it."""

    tree: str
    process: psutil.Process
    health: list[Connection]
    engines: list[Engine]


def main() -> None:
    """Measure and print one table."""
    options = _options()
    cluster = running_cluster() if options.database == "postgresql" else nullcontext()
    with ExitStack() as stack:
        own = stack.enter_context(cluster)
        services = []
        for tree in options.tree:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            url = own.create_database() if own else f"sqlite:///{folder}/gearshift.db"
            prepare(url)
            service = running_service(url, Path(folder), tree=Path(tree).resolve())
            services.append((tree, *stack.enter_context(service)))
        asyncio.run(_measure(services, options))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--tree", action="append", required=True, help="a checkout; several times")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--asks", type=int, default=2000, help="requests of a kind in a round")
    parser.add_argument("--polls", type=int, default=3, help="of each engine, a second each")
    return parser.parse_args()


async def _measure(
    services: list[tuple[str, str, psutil.Process]], options: argparse.Namespace
) -> None:
    crowd = Crowd(num_engines=CONNECTIONS, every_s=0.0, requests=5, seed=0)
    asked = []
    for tree, url, process in services:
        await until_ready(url)
        engines = [await connect_engine(url, crowd, number) for number in range(CONNECTIONS)]
        asked.append(Asked(tree, process, [Connection(url) for _ in engines], engines))
    kinds: dict[str, Callable[[Asked, int], Awaitable[None]]] = {
        "heartbeat": _beat,
        "long poll": _poll,
        "/healthz": _ask_health,
    }
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(options.rounds):
        for kind, ask in kinds.items():
            for one in asked:
                times = options.polls if ask is _poll else options.asks // CONNECTIONS
                begin_s = cpu_s(one.process)
                await ask(one, times)
                each_us = (cpu_s(one.process) - begin_s) / (times * CONNECTIONS) * 1e6
                found.setdefault((kind, one.tree), []).append(each_us)
    print(f"us of CPU, {CONNECTIONS} connections; median and range of {options.rounds} rounds")
    for (kind, tree), values in found.items():
        print(f"{kind:10} {tree}: {np.median(values):.0f} ({min(values):.0f} to {max(values):.0f})")


async def _beat(asked: Asked, times: int) -> None:
    await asyncio.gather(*(engine.beat_at_once(times) for engine in asked.engines))


async def _poll(asked: Asked, times: int) -> None:
    found = Times()
    for _ in range(times):
        await asyncio.gather(*(engine.poll_once(POLL_S, found) for engine in asked.engines))
    assert not found.errors, found.errors


async def _ask_health(asked: Asked, times: int) -> None:
    async def ask(connection: Connection) -> None:
        for _ in range(times):
            assert (await connection.ask(encode("GET", "/healthz", {}))).status == 200

    await asyncio.gather(*(ask(connection) for connection in asked.health))


if __name__ == "__main__":
    main()
