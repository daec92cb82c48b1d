"""Operating points from simulation, with the intervals of its step model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from engine.executors.protocol import StepTimer
from engine.spec.measurement import Fidelity, Measurement
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.points import INTERVAL_Z, Estimate, OperatingPoint
from policies.report import flat_metrics
from policies.sla import Sla
from tuner.described.node import Node
from tuner.described.step_error import StepError, step_error
from tuner.simulation.simulate import Ranks, SimulatedEngine, SimulationResult, simulate
from tuner.spec.look_ahead import LookAhead
from tuner.step_model.timer import ScaledTimer, StepScale
from tuner.workload.workload import Workload

AS_TOLD = StepScale()
_Run = tuple[Settings, Workload, StepScale]


@dataclass(kw_only=True)
class Simulator:
    """Simulates settings of one model under one SLA; remembers what it has simulated.

    ``interval`` is how far whole-plan step times may be off, as a log ratio: points carry the
    metrics of a run with all steps that much slower, and faster. A ``node`` knows this by phase and
    load, as well as what lies around its steps (a backend's front end), and simulates for itself.
    ``slower`` is how much slower than its step model a plan has turned out to be, as a log ratio;
    ``step_scale`` how many times longer than the model says all steps take.

    Without ``timer_of``, nothing is known of step times: points have no metrics, and nobody may ask
    for runs or timers.
    """

    model: ModelConfig
    sla: Sla
    timer_of: Callable[[ParallelPlan], StepTimer] | None
    blocks_of: Callable[[ParallelPlan], int]
    block_size: int
    max_model_len: int
    interval: float
    seed: int = 0
    node: Node | None = None
    slower: dict[ParallelPlan, float] = field(default_factory=dict)
    step_scale: float = 1.0
    _timers: dict[ParallelPlan, StepTimer] = field(default_factory=dict)
    _seen: dict[tuple[Settings, Workload, StepScale], dict[str, float]] = field(
        default_factory=dict
    )

    @property
    def is_blind(self) -> bool:
        return self.timer_of is None

    def timer(self, plan: ParallelPlan) -> StepTimer:
        """The plan's step timer, made once."""
        if plan not in self._timers:
            assert self.timer_of is not None, "a blind simulator knows no step times"
            self._timers[plan] = self.timer_of(plan)
        return self._timers[plan]

    def run(
        self, settings: Settings, workload: Workload, scale: StepScale = AS_TOLD
    ) -> Measurement:
        """One simulated run, with step times multiplied by ``scale``."""
        return self.result(settings, workload, scale).measurement

    def result(
        self, settings: Settings, workload: Workload, scale: StepScale = AS_TOLD
    ) -> SimulationResult:
        """As :meth:`run`, with the steps that it took."""
        scale = self._found(settings, scale)
        if self.node is not None:
            return self.node.simulate(settings, workload, seed=self.seed, step_scale=scale)
        engine = SimulatedEngine(
            model=self.model,
            ranks_of=lambda plan: Ranks(
                timer=self._scaled(plan, scale), num_kv_blocks=self.blocks_of(plan)
            ),
            block_size=self.block_size,
            max_model_len=self.max_model_len,
            look_ahead=LookAhead.BEFORE_END,  # as the engine at hand does
        )
        return simulate(engine, settings, workload, seed=self.seed)

    def slow_down(self, plan: ParallelPlan, log_ratio: float) -> None:
        """From now on, simulate steps of ``plan`` as this much slower than before."""
        self.slower[plan] = self.slower.get(plan, 0.0) + log_ratio

    def quick_point(self, settings: Settings, workload: Workload) -> OperatingPoint:
        """The simulated point without an interval: one run instead of three."""
        flat = self._flat(settings, workload)
        exact = {key: Estimate.exact(value) for key, value in flat.items()}
        return OperatingPoint(settings=settings, fidelity=Fidelity.SIMULATED, metrics=exact)

    def point(self, settings: Settings, workload: Workload) -> OperatingPoint:
        """The simulated point with the interval of its step model."""
        value = self._flat(settings, workload)
        error = self._error(settings, workload, value)
        ends = [error.scale(slowness) for slowness in (INTERVAL_Z, -INTERVAL_Z)]
        runs = [value, *(self._flat(settings, workload, scale) for scale in ends)]
        shared = [key for key in runs[0] if all(key in run for run in runs)]
        metrics = {
            key: Estimate(
                value=runs[0][key],
                low=min(run[key] for run in runs),
                high=max(run[key] for run in runs),
            )
            for key in shared
        }
        return OperatingPoint(settings=settings, fidelity=Fidelity.SIMULATED, metrics=metrics)

    def _error(
        self, settings: Settings, workload: Workload, metrics: dict[str, float]
    ) -> StepError:
        if self.node is None:
            return StepError(prefill=self.interval, decode=self.interval)
        return step_error(self.node, settings, workload, metrics)

    def _found(self, settings: Settings, scale: StepScale) -> StepScale:
        """``scale`` with how much slower steps have turned out to be."""
        return scale.times(self.step_scale * math.exp(self.slower.get(settings.plan, 0.0)))

    def _scaled(self, plan: ParallelPlan, scale: StepScale) -> StepTimer:
        timer = self.timer(plan)
        return timer if scale.is_one else ScaledTimer(timer, scale)

    def _flat(
        self, settings: Settings, workload: Workload, scale: StepScale = AS_TOLD
    ) -> dict[str, float]:
        if self.is_blind:
            return {}
        key = (settings, workload, self._found(settings, scale))
        if key not in self._seen:
            self._seen[key] = flat_metrics(self.run(settings, workload, scale), self.sla)
        return self._seen[key]
