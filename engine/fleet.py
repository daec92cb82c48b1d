"""Starts the replicas of a policy, and keeps what outlives them: counters and rank processes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from engine.executors.clock import WallClock
from engine.executors.factory import make_executor
from engine.executors.pool import RankPool
from engine.executors.protocol import Executor, ExecutorInfo, StepTimer
from engine.replica.devices import for_replica
from engine.replica.replica import Replica
from engine.replica.telemetry import Telemetry
from engine.spec.config import EngineConfig, ExecutorKind
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings

TimerFactory = Callable[[ParallelPlan], StepTimer]


class Fleet:
    """Every replica of one engine, whatever its plan. Calls come one at a time.

    The next plan takes over the rank processes of the one before, as many as it can use.
    """

    def __init__(
        self, config: EngineConfig, model: ModelConfig, *, timer_factory: TimerFactory | None
    ) -> None:
        self.telemetry: list[Telemetry] = []
        self.infos: list[ExecutorInfo] = []
        self._config = config
        self._model = model
        self._timer_factory = timer_factory
        self._pools: list[RankPool] = []

    def launch(self, settings: Settings, *, first_step_id: int = 0) -> list[Replica]:
        """Start the replicas of a plan side by side; on a failure none is left running.

        Raises:
            CheckpointError, PlanError, RankError: what the first of them could not do.
        """
        plan = settings.plan
        count = plan.dp
        self._prepare_pools(plan)
        while len(self.telemetry) < count:
            self.telemetry.append(Telemetry())
        configs = [for_replica(self._config, plan, index=index) for index in range(count)]
        replicas = [
            Replica(
                index=index,
                config=config,
                model=self._model,
                settings=settings,
                make_executor=partial(self._make_executor, config, plan.replica, index),
                telemetry=self.telemetry[index],
                first_step_id=first_step_id,
            )
            for index, config in enumerate(configs)
        ]
        for replica in replicas:
            replica.launch()
        try:
            self.infos = [replica.wait_started() for replica in replicas]
        except BaseException:
            for replica in replicas:
                replica.stop()
            self.close()
            raise
        return replicas

    def close(self) -> None:
        """End the rank processes that are left, once every replica has been stopped."""
        self._keep_pools(0)

    def _prepare_pools(self, plan: ParallelPlan) -> None:
        """One pool per replica that runs on processes; those of no use now are ended."""
        kind = self._config.executor
        is_auto = kind is ExecutorKind.AUTO and plan.replica_size > 1
        count = plan.dp if is_auto or kind is ExecutorKind.PROCESS else 0
        self._keep_pools(count)
        while len(self._pools) < count:
            self._pools.append(RankPool(num_spares=self._config.spare_ranks))

    def _keep_pools(self, count: int) -> None:
        for pool in self._pools[count:]:
            pool.close()
        del self._pools[count:]

    def _make_executor(self, config: EngineConfig, plan: ParallelPlan, index: int) -> Executor:
        timer = self._timer_factory(plan) if self._timer_factory is not None else None
        pool = self._pools[index] if self._pools else None
        return make_executor(config, self._model, plan, timer=timer, clock=WallClock(), ranks=pool)
