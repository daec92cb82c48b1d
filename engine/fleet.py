"""Starts the replicas of a policy, and keeps what outlives them: counters and rank processes."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from engine.executors.clock import WallClock
from engine.executors.factory import make_executor
from engine.executors.pool import RankPool
from engine.executors.protocol import Executor, ExecutorInfo, IsEnding, StepTimer
from engine.modes.table import ModeTable
from engine.replica.devices import for_replica
from engine.replica.replica import Replica
from engine.replica.telemetry import Telemetry
from engine.spec.config import EngineConfig, ExecutorKind
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from engine.transition.planning import Slot, first_slots

TimerFactory = Callable[[ParallelPlan], StepTimer]


@dataclass(frozen=True, kw_only=True)
class _Member:
    """Where a replica stands, and what its ranks hold."""

    slot: Slot
    info: ExecutorInfo


class Fleet:
    """Every replica of one engine, whatever its plan. Calls come one at a time.

    Each running replica has a number. Counters belong to the number, so the next replica with that
    number goes on counting. The next plan takes over as many rank processes of :meth:`dropped
    <drop>` replicas as it can use. Starts under way fail once any thread sets ``is_closing``.
    """

    def __init__(
        self,
        config: EngineConfig,
        model: ModelConfig,
        is_closing: threading.Event,
        *,
        timer_factory: TimerFactory | None,
    ) -> None:
        self._is_closing = is_closing
        self.telemetry: list[Telemetry] = []
        self._config = config
        self._model = model
        self._timer_factory = timer_factory
        self._members: dict[int, _Member] = {}
        self._pools: dict[int, RankPool] = {}

    @property
    def infos(self) -> list[ExecutorInfo]:
        """What each replica's ranks hold."""
        return [member.info for _, member in sorted(self._members.items())]

    @property
    def ranks(self) -> list[int]:
        """The devices in use, as the engine counts them."""
        return sorted(rank for m in list(self._members.values()) for rank in m.slot.ranks)

    def slot_of(self, replica: Replica) -> Slot:
        """Where a replica of this fleet stands."""
        return self._members[replica.index].slot

    def launch(
        self,
        settings: Settings,
        slots: Sequence[Slot] | None = None,
        *,
        first_step_id: int = 0,
        mode_table: ModeTable | None = None,
        is_later: bool = False,
    ) -> list[Replica]:
        """Start replicas of a plan side by side; on a failure none of them is left running.

        ``slots`` says where, by default in those of the whole plan. With a ``mode_table``, no step
        times are taken. ``is_later``: after the engine's own start; paced ranks then take their
        time to start.

        Raises:
            CheckpointError, PlanError, RankError: what the first of them could not do.
        """
        plan = settings.plan
        slots = first_slots(plan) if slots is None else slots
        free = (number for number in itertools.count() if number not in self._members)
        places = dict(zip(free, slots, strict=False))
        self._prepare(plan, places)
        replicas = [
            self._replica(number, slot, settings, first_step_id, mode_table, is_later)
            for number, slot in places.items()
        ]
        for replica in replicas:
            replica.launch()
        try:
            infos = [replica.wait_started() for replica in replicas]
        except BaseException:
            for replica in replicas:
                replica.stop()
            self._close_pools(places)
            raise
        for (number, slot), info in zip(places.items(), infos, strict=True):
            self._members[number] = _Member(slot=slot, info=info)
        return replicas

    def drop(self, replicas: Iterable[Replica]) -> None:
        """Note that stopped replicas have no slot any more; their processes wait for the next
        plan."""
        for replica in replicas:
            self._members.pop(replica.index, None)

    def retire(self, replica: Replica) -> None:
        """End the processes of a replica that was stopped for good, and free its devices."""
        self._members.pop(replica.index, None)
        self._close_pools([replica.index])

    def close_idle(self) -> None:
        """End the processes that no replica has."""
        self._close_pools(set(self._pools) - set(self._members))

    def close(self) -> None:
        """End the rank processes that are left, once every replica has been stopped."""
        self._members.clear()
        self._close_pools(list(self._pools))

    def _replica(
        self,
        number: int,
        slot: Slot,
        settings: Settings,
        first_step_id: int,
        mode_table: ModeTable | None,
        is_later: bool,
    ) -> Replica:
        plan = settings.plan
        config = for_replica(self._config, plan, first_rank=slot.first)
        return Replica(
            index=number,
            config=config,
            model=self._model,
            settings=settings,
            make_executor=partial(self._make_executor, config, plan.replica, number, is_later),
            telemetry=self.telemetry[number],
            first_step_id=first_step_id,
            mode_table=mode_table,
            is_closing=self._is_closing,
        )

    def _prepare(self, plan: ParallelPlan, numbers: Iterable[int]) -> None:
        """Counters for each number, and a pool where its replica runs on processes."""
        kind = self._config.executor
        is_auto = kind is ExecutorKind.AUTO and plan.replica_size > 1
        has_processes = is_auto or kind is ExecutorKind.PROCESS
        for number in numbers:
            while len(self.telemetry) <= number:
                self.telemetry.append(Telemetry())
            if has_processes and number not in self._pools:
                self._pools[number] = RankPool(num_spares=self._config.spare_ranks)

    def _close_pools(self, numbers: Iterable[int]) -> None:
        for number in list(numbers):
            if (pool := self._pools.pop(number, None)) is not None:
                pool.close()

    def _make_executor(
        self,
        config: EngineConfig,
        plan: ParallelPlan,
        number: int,
        is_later: bool,
        is_ending: IsEnding,
    ) -> Executor:
        timer = self._timer_factory(plan) if self._timer_factory is not None else None
        start_s_of = config.start_s_of if is_later else None
        return make_executor(
            config,
            self._model,
            plan,
            timer=timer,
            clock=WallClock(),
            ranks=self._pools.get(number),
            start_s=0.0 if start_s_of is None else start_s_of(plan),
            is_ending=is_ending,
        )
