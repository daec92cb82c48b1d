"""Everything the trials of one tuning job share: workload, space, simulator, live engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from engine.executors.protocol import StepTimer
from engine.spec.config import EngineConfig, num_kv_blocks
from engine.spec.extensions import ExtensionPoint, get_extension
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from engine.spec.steps import StepSample
from policies.numbers import short
from policies.points import OperatingPoint
from policies.sla import Sla
from tuner.capacity.table import check_has_table
from tuner.described.node import Node
from tuner.hardware import Hardware
from tuner.launch.why_not import OWN, why_not
from tuner.load.live import LiveEngine
from tuner.load.tuning_target import MakeTarget, TargetAsked, TuningTarget
from tuner.search.corrected import Corrected
from tuner.search.costs import Cost, Level, Meter
from tuner.search.design import advised_ladders, design_settings, refined_settings
from tuner.search.feasibility import check_memory, engine_config, refused_caps
from tuner.search.grid import Grid
from tuner.search.served import server_caps, server_command
from tuner.search.simulator import Simulator
from tuner.search.spec import TuningSpec
from tuner.search.surrogate import Example, Load, features
from tuner.servers.command import ServerCommand
from tuner.servers.target import ServerTarget
from tuner.spec.errors import TunerError
from tuner.spec.space import ORDERS, STEP_MS, Space, build_space
from tuner.step_model.model import StepModel
from tuner.step_model.quality import Quality
from tuner.workload.parse import parse_workload
from tuner.workload.slices import at_rate, head
from tuner.workload.workload import Workload

DESIGN_REQUESTS = 120
DESIGN_RATES = (0.5, 2.0)
# What queues only after minutes shows only in long runs; at most so many requests of the workload.
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
    """What :func:`prepare` built. Close it, or use ``with``: it may hold a live engine.

    ``trial_workload`` is what a trial runs: the probe's slice where trials are live, else all.
    ``design`` are simulated points of every feasible plan, never run or not. ``server_command``
    starts what trials run on where that is no engine of ours. ``meter`` holds what was taken since
    the last trial, ``design_costs`` what the design took, ``final_costs`` what measuring the best
    again took, and ``spent_before_s`` the device seconds of that which an earlier process took.
    ``step_samples`` are those of live runs of our engine in this process, the latest.
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
    spent_before_s: float = 0.0
    step_samples: list[StepSample] = field(default_factory=list)
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
            span_s=self.trial_workload.span_s,
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
            return LiveEngine(self.config)
        return ServerTarget(
            self.server_command,
            vocab_size=self.model.vocab_size,
            start_timeout_s=self.spec.start_timeout_s,
        )

    def keep_steps(self) -> None:
        """Keep the step samples of the last live run, where our engine ran it."""
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


def prepare(
    spec: TuningSpec,
    *,
    cost_model: dict[str, Any] | None = None,
    on_event: OnEvent = lambda _: None,
) -> TuningContext:
    """Read everything, profile if need be, and simulate every feasible plan.

    ``cost_model`` is a step model's document; a local job without one profiles this machine.

    Raises:
        TunerError, PolicyInputError, EngineError: whatever in the spec is at fault.
    """
    sla = spec.parsed_sla
    workload = parse_workload(spec.workload, seed=spec.seed)
    if spec.capacity_table:
        check_has_table(workload)
    node = None if spec.is_local else spec.node()
    hardware = None if node is None else node.hardware
    if hardware is not None and spec.num_devices > hardware.count:
        raise TunerError(f"{spec.num_devices} devices asked for, {hardware} has {hardware.count}")
    model = ModelConfig.from_dir(spec.model_path) if node is None else node.model
    config = engine_config(spec, model, node)
    max_model_len = min(config.max_model_len or model.max_positions, model.max_positions)
    space = build_space(
        model,
        spec.num_devices,
        check_memory=lambda plan: _check_plan(spec, node, config, plan, model, workload),
        max_model_len=max_model_len,
        least_devices=spec.num_devices if spec.uses_all_devices else 1,
    )
    is_blind = spec.is_served and node is None and cost_model is None
    if is_blind and spec.capacity_table:
        raise TunerError(
            "a capacity table is simulated, and nothing is known of this server's step times; "
            "name what it runs on (--hardware) or a cost model"
        )
    meter = Meter()
    step_model = None if node or is_blind else _step_model(spec, model, cost_model, on_event, meter)
    timer_of = None if is_blind else _timers(spec, model, node, step_model)
    has_rungs = not spec.is_served and (node is None or node.has_rungs)
    space = _with_ladders(space, timer_of, has_rungs=has_rungs)
    if node is not None or not spec.is_served:  # no flags of a server's express such knobs
        space = with_own_knobs(space, node, workload)
    simulator = Simulator(
        model=model,
        sla=sla,
        timer_of=timer_of,
        blocks_of=lambda plan: num_kv_blocks(config, model, plan),
        block_size=config.block_size,
        max_model_len=max_model_len,
        interval=_interval(node, step_model),
        seed=spec.seed,
        node=node,
        step_scale=spec.step_scale,
    )
    is_live = (spec.is_local or spec.is_served) and spec.is_live
    context = TuningContext(
        spec=spec,
        model=model,
        sla=sla,
        workload=workload,
        trial_workload=head(workload, spec.probe_requests) if is_live else workload,
        space=space,
        simulator=simulator,
        config=replace(
            config,
            envelope=space.envelope,
            threads_per_rank=step_model.machine.threads_per_rank if step_model else None,
        ),
        max_live_ranks=_max_live_ranks(spec, step_model) if is_live else 0,
        cost_model=step_model,
        hardware=hardware,
        on_event=on_event,
        warnings=_warnings(spec, model, hardware, step_model, workload),
        server_command=_command(spec, config),
        meter=meter,
    )
    with (design := Meter()).timing(Level.SIMULATED):
        _simulate_design(context)
    context.design_costs = () if is_blind else design.taken()
    return context


def _command(spec: TuningSpec, config: EngineConfig) -> ServerCommand | None:
    """What starts a server for each trial; None where another target is asked for."""
    is_started = spec.is_served and not spec.is_brought
    return server_command(spec, config) if is_started else None


def _with_ladders(
    space: Space, timer_of: Callable[[ParallelPlan], StepTimer] | None, *, has_rungs: bool
) -> Space:
    """The space with the thresholds of rungs that its step times advise."""
    if not has_rungs or timer_of is None:
        return replace(space, has_rungs=False)
    plans = [plan for plan in space.plans if plan.modes[1:-1]]
    timers = {plan: timer_of(plan) for plan in plans}
    return replace(space, ladders=advised_ladders(timers, space.default_caps.max_num_seqs))


def with_own_knobs(space: Space, node: Node | None, workload: Workload) -> Space:
    """The space with what only our own scheduler can be told, and without caps that a described
    node has no room for."""
    if node is None:
        return replace(space, step_ms=STEP_MS, orders=ORDERS)
    space = replace(space, refused=refused_caps(space, node, workload))
    if node.backend.name != OWN:
        return space
    return replace(space, step_ms=STEP_MS, orders=ORDERS)


def _check_plan(
    spec: TuningSpec,
    node: Node | None,
    config: EngineConfig,
    plan: ParallelPlan,
    model: ModelConfig,
    workload: Workload,
) -> None:
    """Raises EngineError or TunerError where the plan does not fit, or the backend lacks it."""
    if node is not None and (reason := why_not(node.backend.name, plan)) is not None:
        raise TunerError(reason)
    if spec.is_served:
        if (reason := why_not(spec.engine, plan)) is not None:
            raise TunerError(reason)
        if node is None:  # what fits only its own start can tell
            return
    check_memory(config, model, plan, workload)


def _step_model(
    spec: TuningSpec,
    model: ModelConfig,
    document: dict[str, Any] | None,
    on_event: OnEvent,
    meter: Meter,
) -> StepModel:
    if document is not None:
        return StepModel.from_json(json.loads(json.dumps(document, default=str)))
    _check_profile_fits(spec)

    from tuner.profiling.run import ProfileSpec, run_profile
    from tuner.step_model.files import check_cost_model_dir, save_cost_model
    from tuner.step_model.fit import fit_step_model

    def say(message: str) -> None:
        on_event(TuningEvent(kind="profiling", message=message))

    check_cost_model_dir()
    wanted = ProfileSpec(
        model_dir=spec.model_path,
        num_ranks=spec.num_devices,
        dtype=spec.rank_dtype(model),
        device=spec.device,
        link=spec.parsed_link,
        seconds=spec.profile_seconds,
        seed=spec.seed,
    )
    with meter.timing(Level.PROFILED, num_devices=spec.num_devices):
        profile = run_profile(wanted, on_event=say)
    fitted = fit_step_model(profile, model, seed=spec.seed)
    path = save_cost_model(fitted)
    on_event(TuningEvent(kind="profiled", message=f"cost model {fitted.id} in {path}"))
    return fitted


def _check_profile_fits(spec: TuningSpec) -> None:
    """Raises TunerError where a profile alone would use up what trials may."""
    budget = spec.device_budget
    needed_s = spec.num_devices * spec.profile_seconds
    if budget is not None and needed_s > budget.for_trials_s:
        raise TunerError(
            f"budget {spec.budget}: {short(budget.for_trials_s)} device seconds of it are for "
            f"trials, and profiling {spec.num_devices} devices for {spec.profile_seconds:g} s "
            f"takes {short(needed_s)}; name a cost model, or profile for less (--profile-seconds)"
        )


def _timers(
    spec: TuningSpec,
    model: ModelConfig,
    node: Node | None,
    step_model: StepModel | None,
) -> Callable[[ParallelPlan], StepTimer]:
    if node is not None:
        return node.timer
    assert step_model is not None, "a local job has a step model"
    return lambda plan: step_model.timer(plan, model, link=spec.parsed_link, hides_host=True)


def _interval(node: Node | None, step_model: StepModel | None) -> float:
    if node is not None:
        return node.interval
    return 0.0 if step_model is None else step_model.error.plan_interval


def _max_live_ranks(spec: TuningSpec, step_model: StepModel | None) -> int:
    if spec.is_served:  # whoever starts servers here knows what they have
        return spec.num_devices

    from tuner.profiling.run import max_active_ranks

    threads = step_model.machine.threads_per_rank if step_model else 1
    return min(spec.num_devices, max_active_ranks(spec.device, threads))


def _warnings(
    spec: TuningSpec,
    model: ModelConfig,
    hardware: Hardware | None,
    step_model: StepModel | None,
    workload: Workload,
) -> list[str]:
    found = list(workload.warnings)
    if hardware is not None:
        device = hardware.device
        found.append(f"{device.title} is {device.calibration} ({device.source})")
    if step_model is not None:
        if other := step_model.check_model(model):
            found.append(other)
        quality = Quality.of(step_model.error)
        if (advice := quality.advice()) is not None:
            found.append(f"{quality.verdict()}; {advice}")
        if spec.num_devices > step_model.max_ranks:
            found.append(
                f"at most {step_model.max_ranks} ranks were timed at once; plans with more are "
                "simulated as if every rank had a core, and never run"
            )
    if spec.link:
        found.append(f"an emulated link delays every collective: {spec.link}")
    return found


def _simulate_design(context: TuningContext) -> None:
    """Simulate a few settings of every feasible plan; some also at other rates, and some on all
    that trials run, for the surrogate."""
    space, simulator = context.space, context.simulator
    if simulator.is_blind:
        context.emit("prepared", f"{len(space.plans)} plans; nothing is simulated before trials")
        return
    sample = head(context.trial_workload, DESIGN_REQUESTS)
    timers = {plan: simulator.timer(plan) for plan in space.plans}

    def simulate(settings: Settings, workload: Workload, load: Load) -> OperatingPoint:
        point = simulator.quick_point(settings, workload)
        known = features(settings, load, timers[settings.plan])
        context.examples.append(Example(point=point, features=known))
        return point

    def simulate_all(every: list[Settings]) -> None:
        load = Load.of(sample)
        for settings in every:
            context.design[settings] = simulate(settings, sample, load)

    simulate_all(design_settings(space, timers))
    objective = context.spec.goal.objective
    simulate_all(refined_settings(space, context.sla, context.design, objective))
    some = [
        next(s for s in context.design if s.plan == plan)
        for plan in space.plans[:: max(1, len(space.plans) // 8)]
    ]
    others = [at_rate(sample, factor) for factor in DESIGN_RATES]
    if len(sample) < len(context.trial_workload):
        others.append(head(context.trial_workload, WHOLE_REQUESTS))
    for workload in others:
        load = Load.of(workload)
        for settings in some:
            simulate(settings, workload, load)
    context.emit(
        "prepared",
        f"{len(space.plans)} feasible plans ({len(space.pruned)} pruned), "
        f"{len(context.design)} settings simulated",
        plans=[str(plan) for plan in space.plans],
    )
