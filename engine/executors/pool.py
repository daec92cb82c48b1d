"""Where an executor's rank processes come from, and what becomes of them afterwards."""

from __future__ import annotations

import logging
import selectors
import time
from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol, assert_never

from engine.executors.ranks import RankProcess, RankProcesses, end_processes
from engine.spec.errors import RankError
from engine.wire.messages import PING

logger = logging.getLogger(__name__)

# How long a rank that lost a peer may take to leave its step before it counts as hung.
PATIENCE_S = 1.0


class Condition(StrEnum):
    """The state in which ranks are given back. ``whole``: nothing failed. ``healable``: some
    failed, the others can be set up again. ``lost``: none can be used any more.
    """

    WHOLE = "whole"
    HEALABLE = "healable"
    LOST = "lost"


class RankSource(Protocol):
    """Lends rank processes to one executor after the other. Owned by one thread at a time."""

    def lend(self, num_ranks: int) -> RankProcesses:
        """Running processes, one per rank, whatever they were used for before.

        Raises:
            RankError: a process could not be started.
        """
        ...

    def give_back(self, ranks: RankProcesses, condition: Condition) -> None:
        """Take lent processes back; those that are not kept have ended on return."""
        ...

    def replenish(self) -> None:
        """Prepare replacements; called once the lent ranks work."""
        ...

    def close(self) -> None:
        """End what is not lent. Safe to call twice."""
        ...


class OwnRanks:
    """Processes that live as long as their executor."""

    def lend(self, num_ranks: int) -> RankProcesses:
        return RankProcesses(num_ranks)

    def give_back(
        self,
        ranks: RankProcesses,
        condition: Condition,  # noqa: ARG002 - RankSource
    ) -> None:
        ranks.close()

    def replenish(self) -> None:
        return

    def close(self) -> None:
        return


class GivenRanks:
    """Processes that the caller owns; they are left running unless one of them failed."""

    def __init__(self, ranks: RankProcesses) -> None:
        self._ranks = ranks

    def lend(self, num_ranks: int) -> RankProcesses:
        assert num_ranks == self._ranks.num_ranks, "one process for each rank of the plan"
        self._ranks.begin_use()
        return self._ranks

    def give_back(self, ranks: RankProcesses, condition: Condition) -> None:
        if condition is not Condition.WHOLE:
            ranks.close()

    def replenish(self) -> None:
        return

    def close(self) -> None:
        return


class RankPool:
    """The processes of one replica, kept across its executors and replaced when they fail.

    A rank that does not answer within ``patience_s`` is killed: it is gone, or its last step still
    hangs after its peers have gone. A spare or a new process takes its place. Other ranks keep
    their processes, and their numbers where possible. ``num_spares`` further processes wait with
    the model's code imported; used ones are replaced in the background once the ranks work again.

    Owned by one thread at a time; :meth:`close` ends everything that is not lent.
    """

    def __init__(
        self,
        *,
        num_spares: int = 0,
        module: str = "engine.rank.worker",
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._num_spares = num_spares
        self._module = module
        self._patience_s = patience_s
        self._idle: list[RankProcess] = []
        self._spares: list[RankProcess] = []
        self._cold: list[RankProcess] = []  # spares that still warm up
        self._is_closed = False

    @property
    def spare_pids(self) -> list[int]:
        """Process ids of the spares, those that still warm up last."""
        return [spare.pid for spare in self._spares + self._cold]

    @property
    def num_warm_spares(self) -> int:
        """Spares that could take a rank's place at once."""
        self._sort_spares(0.0)
        return len(self._spares)

    def lend(self, num_ranks: int) -> RankProcesses:
        if self._is_closed:
            raise RankError("the pool of ranks is closed")
        self._heal()
        lent = [rank or self._replacement() for rank in self._choose(num_ranks)]
        self._idle = []
        return RankProcesses(num_ranks, processes=lent)

    def give_back(self, ranks: RankProcesses, condition: Condition) -> None:
        processes = ranks.release()
        match condition:
            case Condition.WHOLE | Condition.HEALABLE if not self._is_closed:
                self._idle += processes
            case Condition.WHOLE | Condition.HEALABLE | Condition.LOST:
                end_processes(processes)
            case _ as never:
                assert_never(never)

    def replenish(self) -> None:
        """Start missing spares, which warm up in the background. If one cannot start, the working
        ranks do without it.
        """
        self._sort_spares(0.0)
        while len(self._spares) + len(self._cold) < self._num_spares:
            try:
                spare = RankProcess(module=self._module)
                spare.begin_use(0)
                self._cold.append(spare)
                spare.send(PING)  # it answers when it is warm
            except RankError as error:
                logger.warning("a spare rank did not start: %s", error)
                return

    def close(self) -> None:
        self._is_closed = True
        end_processes(self._idle + self._spares + self._cold)
        self._idle, self._spares, self._cold = [], [], []

    def _heal(self) -> None:
        """Kill the processes that no longer answer."""
        self._sort_spares(0.0)
        asked = self._idle + self._spares
        for rank in asked:
            rank.begin_use(rank.number)
        fine = _answering(asked, self._patience_s, is_asked=False)
        end_processes([rank for rank in asked if rank not in fine])
        self._idle = [rank for rank in self._idle if rank in fine]
        self._spares = [rank for rank in self._spares if rank in fine]

    def _choose(self, num_ranks: int) -> list[RankProcess | None]:
        """Idle processes by rank, as many as there are; the rest are ended."""
        chosen: list[RankProcess | None] = [None] * num_ranks
        others = []
        for rank in self._idle:
            if rank.number < num_ranks and chosen[rank.number] is None:
                chosen[rank.number] = rank
            else:
                others.append(rank)
        for number in [n for n, rank in enumerate(chosen) if rank is None][: len(others)]:
            chosen[number] = others.pop(0)
        end_processes(others)
        self._idle = [rank for rank in chosen if rank is not None]
        return chosen

    def _replacement(self) -> RankProcess:
        """A warm spare, else a cold one, else a new process; the pool owns it for now."""
        source = self._spares or self._cold
        found = source.pop(0) if source else RankProcess(module=self._module)
        self._idle.append(found)
        return found

    def _sort_spares(self, timeout_s: float) -> None:
        """Find out which spares are warm by now, and drop those that are gone."""
        warm = _answering(self._cold, timeout_s, is_asked=True)
        gone = [spare for spare in self._spares + self._cold if not spare.is_alive]
        end_processes(gone)
        self._spares = [s for s in self._spares + warm if s not in gone]
        self._cold = [s for s in self._cold if s not in warm and s not in gone]


def _answering(
    processes: Sequence[RankProcess], timeout_s: float, *, is_asked: bool
) -> list[RankProcess]:
    """Those that answer a ping within ``timeout_s``; ``is_asked``: the ping was sent before."""
    deadline_s = time.monotonic() + timeout_s
    found = []
    with selectors.DefaultSelector() as selector:
        for rank in processes:
            if is_asked or _ping(rank):
                selector.register(rank.channel, selectors.EVENT_READ, rank)
        while selector.get_map():
            left_s = max(0.0, deadline_s - time.monotonic())
            for key, _ in selector.select(left_s):
                rank = key.data
                is_open = rank.channel.read()
                has_answered = PING in rank.take_frames()
                if has_answered:
                    found.append(rank)
                if has_answered or not is_open:
                    selector.unregister(rank.channel)
            if left_s == 0.0:
                break
    return found


def _ping(rank: RankProcess) -> bool:
    try:
        rank.send(PING)
    except RankError:
        return False
    return True
