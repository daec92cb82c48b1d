"""Everything the trials of one tuning job share: workload, space, simulator, live engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from engine.spec.config import EngineConfig
from engine.spec.extensions import ExtensionPoint, get_extension
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from engine.spec.steps import StepSample
from policies.points import OperatingPoint
from policies.sla import Sla
from tuner.hardware import Hardware
from tuner.load.tuning_target import MakeTarget, TargetAsked, TuningTarget
from tuner.search.corrected import Corrected
from tuner.search.costs import NOTHING_SPENT, Cost, Meter, Spent
from tuner.search.grid import Grid
from tuner.search.served import server_caps
from tuner.search.simulator import Simulator
from tuner.search.spec import TuningSpec
from tuner.search.surrogate import Example, Load
from tuner.servers.command import ServerCommand
from tuner.spec.errors import TunerError
from tuner.spec.space import Space
from tuner.step_model.model import StepModel
from tuner.workload.workload import Workload

# Queues that form only after minutes show only in long runs, so runs have up to this many requests.
WHOLE_REQUESTS = 1000
# Step samples that are kept for judging the cost model.
KEPT_STEPS = 20_000


@dataclass(frozen=True, kw_only=True)
class TuningEvent:
    """Something that happened, for progress displays and job logs."""

    kind: str
    message: str
    data: dict[str, Any] = field(default_factory=dict)


OnEvent = Callable[[TuningEvent], None]


@dataclass(kw_only=True)
class TuningContext:
    """What :func:`tuner.search.prepare.prepare` built. Close it, or use ``with``: it may hold a
    live engine.

    ``trial_workload`` is what a trial runs: the probe's slice if trials are live, else all.
    ``design`` are simulated points of every feasible plan, never run or not. ``server_command``
    starts what trials run on, unless that is an engine of ours. ``meter`` holds the costs since the
    last trial, ``design_costs`` those of the design, ``final_costs`` those of measuring the best
    again, and ``spent_before`` what an earlier process took of the latter.
    ``groundwork_key`` identifies what trials rest on, and ``num_kept`` is its size when it was last
    kept. ``step_samples`` are those of live runs of our engine in this process, the latest.
    """

    spec: TuningSpec
    model: ModelConfig
    sla: Sla
    workload: Workload
    trial_workload: Workload
    space: Space
    simulator: Simulator
    config: EngineConfig
    max_live_ranks: int
    cost_model: StepModel | None
    hardware: Hardware | None
    on_event: OnEvent
    warnings: list[str] = field(default_factory=list)
    design: dict[Settings, OperatingPoint] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    server_command: ServerCommand | None = None
    meter: Meter = field(default_factory=Meter)
    design_costs: tuple[Cost, ...] = ()
    final_costs: list[Cost] = field(default_factory=list)
    spent_before: Spent = NOTHING_SPENT
    step_samples: list[StepSample] = field(default_factory=list)
    groundwork_key: str = ""
    num_kept: int = 0
    _live: TuningTarget | None = None

    @cached_property
    def grid(self) -> Grid:
        """Every feasible combination of knobs."""
        return Grid(self.space)

    @cached_property
    def corrected(self) -> Corrected:
        """What arithmetic says of the grid under the trials' workload."""
        return Corrected(
            grid=self.grid,
            sla=self.sla,
            load=Load.of(self.trial_workload),
            timer=self.simulator.timer,
            objective=self.spec.goal.objective,
        )

    def __enter__(self) -> TuningContext:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the live engine or server, if one was started."""
        if self._live is not None:
            self._live.close()
            self._live = None

    @property
    def live(self) -> TuningTarget:
        """What live trials run on, made on first use."""
        if self._live is None:
            self._live = self._make_live()
        return self._live

    def _make_live(self) -> TuningTarget:
        if self.spec.is_brought:
            make: MakeTarget = get_extension(
                ExtensionPoint.TUNING_TARGETS, self.spec.engine, TunerError
            )
            return make(
                TargetAsked(
                    model_dir=self.spec.model_dir,
                    vocab_size=self.model.vocab_size,
                    num_devices=self.spec.num_devices,
                    device=self.spec.device,
                )
            )
        if self.server_command is None:
            from tuner.load.live import LiveEngine

            return LiveEngine(self.config)
        from tuner.servers.target import ServerTarget

        return ServerTarget(
            self.server_command,
            vocab_size=self.model.vocab_size,
            start_timeout_s=self.spec.start_timeout_s,
        )

    def keep_steps(self) -> None:
        """Keep the step samples of the last live run, if our engine ran it."""
        if self._live is None:
            return
        from tuner.load.live import LiveEngine

        if isinstance(self._live, LiveEngine):
            self.step_samples += self._live.drain_samples()
            del self.step_samples[:-KEPT_STEPS]

    def told_by_server(self) -> dict[str, Any]:
        """What a server itself told of the last live run, as a part of its document."""
        told = None if self._live is None else self._live.told()
        return {} if told is None else {"server": told}

    @property
    def baseline(self) -> Settings:
        """What one starts without a tuner: one replica over all devices by tensor parallelism, as
        far as the model lets it, with the caps that its serving system has by default."""
        alone = [p for p in self.space.plans if p.dp == p.pp == p.sp == 1] or self.space.plans
        return self.default_settings(max(alone, key=lambda plan: plan.tp))

    def default_settings(self, plan: ParallelPlan) -> Settings:
        """``plan`` with the caps that it has where nobody names any."""
        node = self.simulator.node
        if self.server_command is not None:
            return Settings(plan=plan, caps=server_caps(self.spec, node, plan))
        caps = self.space.default_caps if node is None else node.backend.default_caps
        return Settings(plan=plan, caps=caps)

    def why_not(self, settings: Settings) -> str | None:
        """Why a server would not start with ``settings``; None when it would, or it is ours."""
        return None if self.server_command is None else self.server_command.why_not(settings)

    def can_run(self, plan: ParallelPlan) -> bool:
        """Whether ``plan`` may be timed live: every rank has a core or device of its own."""
        return plan.world_size <= self.max_live_ranks

    def emit(self, kind: str, message: str, **data: Any) -> None:
        self.on_event(TuningEvent(kind=kind, message=message, data=data))
