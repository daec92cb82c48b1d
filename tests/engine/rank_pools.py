"""Rank processes shared by tests: one pool per world size and kind of rank."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from engine.executors.pool import RankPool
from engine.executors.ranks import RankProcesses
from engine.parallel.shm_layout import Segment
from engine.spec.errors import RankError
from tests.contracts.communicator_worker import Die, Group, Open, Operation, Outcome, Program

ANSWER_TIMEOUT_S = 60.0


class RankPools:
    """Starts rank processes when first asked for and keeps them; broken pools are replaced."""

    def __init__(self) -> None:
        self._pools: dict[tuple[int, str], RankProcesses] = {}

    def get(self, num_ranks: int, module: str = "engine.rank.worker") -> RankProcesses:
        """Running ranks, whatever they were set up for before."""
        pool = self._pools.get((num_ranks, module))
        if pool is None or not pool.is_alive:
            if pool is not None:
                pool.close()
            pool = self._pools[num_ranks, module] = RankProcesses(num_ranks, module=module)
        return pool

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()


class LastingPool(RankPool):
    """A pool that engines take for their own, and that keeps its ranks when they close it."""

    def close(self) -> None:
        return

    def end(self) -> None:
        """End the ranks at last."""
        super().close()


class ProcessWorld:
    """Real processes joined by one backend; see ``tests.contracts.communicator.World``."""

    def __init__(
        self, ranks: RankProcesses, groups: Sequence[Sequence[int]], segment: Segment | None
    ) -> None:
        self.size = ranks.num_ranks
        self.ranks = ranks
        self.groups = {
            tuple(members): Group(name=f"g{number}", members=tuple(members))
            for number, members in enumerate(groups)
        }
        self.segment = segment

    def run(self, members: Sequence[int], program: Sequence[Operation]) -> list[list[bytes]]:
        outcomes = self.outcomes(members, program)
        for outcome in outcomes:
            if outcome.error is not None:
                raise RankError(outcome.error)
        return [outcome.results for outcome in outcomes]

    def outcomes(
        self,
        members: Sequence[int],
        program: Sequence[Operation],
        only: Sequence[int] | None = None,
    ) -> list[Outcome]:
        """Run the program on all members, or on ``only`` some; their outcomes in that order."""
        payload = msgspec.msgpack.encode(
            Program(group=self.groups[tuple(members)], operations=list(program))
        )
        asked = list(only if only is not None else members)
        for rank in asked:
            self.ranks.send(rank, payload)
        return self._answers(asked)

    def lose(self, rank: int) -> None:
        """Let one rank exit without a word."""
        self.ranks.send(rank, msgspec.msgpack.encode(Die()))

    def open(self, backend: str, address: str, fds: dict[int, list[int]], timeout_s: float) -> None:
        for rank in range(self.size):
            message = Open(
                backend=backend,
                init_method=address,
                rank=rank,
                num_ranks=self.size,
                groups=list(self.groups.values()),
                timeout_s=timeout_s,
            )
            self.ranks.send(rank, msgspec.msgpack.encode(message), fds.get(rank, []))
        for outcome in self._answers(range(self.size)):
            if outcome.error is not None:
                raise RankError(outcome.error)

    def _answers(self, asked: Sequence[int]) -> list[Outcome]:
        answers: dict[int, Outcome] = {}
        while not answers.keys() >= set(asked):
            frame = self.ranks.receive(ANSWER_TIMEOUT_S)
            assert frame is not None, "a rank hangs"
            answers[frame.rank] = msgspec.msgpack.decode(frame.payload, type=Outcome)
        return [answers[rank] for rank in asked]


@contextmanager
def process_world(
    pools: RankPools,
    backend: str,
    *,
    num_ranks: int,
    groups: Sequence[Sequence[int]],
    library: Path | None = None,
    timeout_s: float = 30.0,
) -> Iterator[ProcessWorld]:
    """Ranks of the pool joined by ``shm`` (Python where ``library`` is None) or ``gloo``."""
    ranks = pools.get(num_ranks, "tests.contracts.communicator_worker")
    if backend == "shm":
        segment = Segment.create()
        try:
            world = ProcessWorld(ranks, groups, segment)
            every = {rank: [segment.fd] for rank in range(num_ranks)}
            world.open("shm", str(library or ""), every, timeout_s)
            yield world
        finally:
            segment.close()
        return
    with socket.create_server(("127.0.0.1", 0)) as listener:
        world = ProcessWorld(ranks, groups, None)
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        world.open(backend, address, {0: [listener.fileno()]}, timeout_s)
        yield world
