"""Our engine on the machine at hand, as its cost model knows it: what a simulation of it needs."""

from __future__ import annotations

from dataclasses import dataclass

from engine.executors.protocol import StepTimer
from engine.spec.config import EngineConfig, num_kv_blocks
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from tuner.simulation.simulate import (
    OnProgress,
    Ranks,
    SimulatedEngine,
    SimulationResult,
    no_progress,
    ranks_of_one,
    simulate,
)
from tuner.spec.look_ahead import LookAhead
from tuner.step_model.model import StepModel
from tuner.step_model.timer import FastestTimer, ScaledTimer
from tuner.workload.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Machine:
    """``model`` under ``config`` with the step times of ``step_model``."""

    step_model: StepModel
    model: ModelConfig
    config: EngineConfig
    max_model_len: int | None = None
    keeps_prefixes: bool = False

    def timer(self, plan: ParallelPlan) -> StepTimer:
        """Step times of one replica; the engine hides host time by itself."""
        return self.step_model.timer(plan, self.model, link=self.config.link, hides_host=True)

    def simulate(
        self,
        settings: Settings,
        workload: Workload,
        *,
        seed: int = 0,
        step_scale: float = 1.0,
        on_progress: OnProgress = no_progress,
        is_oracle: bool = False,
    ) -> SimulationResult:
        """One run; ``is_oracle`` as in :meth:`tuner.described.node.Node.simulate`.

        Raises:
            PlanError, PolicyError: the plan cannot run here, or has no such mode.
        """
        plan = settings.plan
        timer: StepTimer = self.timer(plan)
        if is_oracle:
            timer = FastestTimer(timer, settings.modes)
        ranks = Ranks(
            timer=ScaledTimer(timer, step_scale),
            num_kv_blocks=num_kv_blocks(self.config, self.model, plan),
        )
        engine = SimulatedEngine(
            model=self.model,
            ranks_of=ranks_of_one(plan, ranks),
            block_size=self.config.block_size,
            max_model_len=self.max_model_len,
            look_ahead=LookAhead.BEFORE_END,  # as the engine at hand does
            keeps_prefixes=self.keeps_prefixes,
        )
        return simulate(engine, settings, workload, seed=seed, on_progress=on_progress)
