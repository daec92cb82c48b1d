"""What plans are compared on: described hardware, or this machine by its cost model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from engine.executors.protocol import StepTimer
from engine.spec.feasible import check_plan
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from tuner.described.machine import Machine
from tuner.described.node import Node
from tuner.launch.why_not import why_not
from tuner.simulation.simulate import SimulationResult
from tuner.spec.errors import TunerError
from tuner.workload.workload import Workload


class Compared(Protocol):
    """Runs any settings of one model in one place. Goes to other processes by pickle."""

    @property
    def model(self) -> ModelConfig: ...

    @property
    def has_rungs(self) -> bool:
        """Whether steps may run on rungs between base and shift."""
        ...

    def check(self, plan: ParallelPlan, caps: Caps) -> None:
        """Raises EngineError or TunerError where the plan cannot run, with the numbers."""
        ...

    def timer(self, plan: ParallelPlan) -> StepTimer: ...

    def run(self, settings: Settings, load: Workload, *, is_oracle: bool) -> SimulationResult: ...


@dataclass(frozen=True, kw_only=True)
class ComparedNode:
    """Described hardware."""

    node: Node
    seed: int
    keeps_prefixes: bool

    @property
    def model(self) -> ModelConfig:
        return self.node.model

    @property
    def has_rungs(self) -> bool:
        return self.node.has_rungs

    def check(self, plan: ParallelPlan, caps: Caps) -> None:
        if (reason := why_not(self.node.backend.name, plan)) is not None:
            raise TunerError(reason)
        self.node.num_kv_blocks(plan, caps)

    def timer(self, plan: ParallelPlan) -> StepTimer:
        return self.node.timer(plan)

    def run(self, settings: Settings, load: Workload, *, is_oracle: bool) -> SimulationResult:
        return self.node.simulate(
            settings,
            load,
            seed=self.seed,
            keeps_prefixes=self.keeps_prefixes,
            is_oracle=is_oracle,
        )


@dataclass(frozen=True, kw_only=True)
class ComparedMachine:
    """Our engine on this machine."""

    machine: Machine
    seed: int

    @property
    def model(self) -> ModelConfig:
        return self.machine.model

    @property
    def has_rungs(self) -> bool:
        return True

    def check(self, plan: ParallelPlan, caps: Caps) -> None:
        del caps  # KV is as the command line says
        check_plan(plan, self.model)

    def timer(self, plan: ParallelPlan) -> StepTimer:
        return self.machine.timer(plan)

    def run(self, settings: Settings, load: Workload, *, is_oracle: bool) -> SimulationResult:
        return self.machine.simulate(settings, load, seed=self.seed, is_oracle=is_oracle)
