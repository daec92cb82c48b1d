"""What comes before the first trial: everything is read, profiled if need be, and simulated."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from engine.executors.protocol import StepTimer
from engine.spec.config import EngineConfig, num_kv_blocks
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.numbers import short
from policies.points import OperatingPoint
from tuner.capacity.table import check_has_table
from tuner.described.node import Node
from tuner.hardware import Hardware
from tuner.launch.why_not import OWN, why_not
from tuner.profiling.profile import weights_of
from tuner.search.context import WHOLE_REQUESTS, OnEvent, TuningContext, TuningEvent
from tuner.search.costs import Level, Meter
from tuner.search.design import advised_ladders, design_settings, refined_settings
from tuner.search.feasibility import as_held, check_memory, check_room, engine_config, refused_caps
from tuner.search.groundwork import find_groundwork, groundwork_key, put_groundwork
from tuner.search.served import server_command
from tuner.search.simulator import Simulator
from tuner.search.spec import TuningSpec
from tuner.search.surrogate import Example, Load, features
from tuner.servers.command import ServerCommand
from tuner.spec.cancel import Cancellation
from tuner.spec.errors import TunerError
from tuner.spec.space import ORDERS, STEP_MS, Space, build_space
from tuner.step_model.model import StepModel
from tuner.step_model.quality import Quality
from tuner.workload.parse import parse_workload
from tuner.workload.slices import at_rate, head
from tuner.workload.workload import Workload

DESIGN_REQUESTS = 120
DESIGN_RATES = (0.5, 2.0)


def prepare(
    spec: TuningSpec,
    *,
    cost_model: dict[str, Any] | None = None,
    groundwork: dict[str, Any] | None = None,
    on_event: OnEvent = lambda _: None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> TuningContext:
    """Read everything, profile if need be, and simulate every feasible plan.

    ``cost_model`` is a step model's document; a local job without one profiles this machine.
    ``groundwork`` is what an earlier process had of this job (``tuner.search.groundwork``).

    Raises:
        CancelledError: it was cancelled meanwhile.
        TunerError, PolicyInputError, EngineError: whatever in the spec is at fault.
    """
    cancel = Cancellation(is_cancelled)
    sla = spec.parsed_sla
    workload, node, model = _read(spec)
    hardware = None if node is None else node.hardware
    config = engine_config(spec, model, node)
    model = as_held(spec, config, model)
    cancel.check()
    space = build_space(
        model,
        spec.num_devices,
        check_memory=lambda plan: _check_plan(spec, node, config, plan, model, workload),
        max_model_len=_max_model_len(config, model),
        least_devices=spec.num_devices if spec.uses_all_devices else 1,
    )
    is_blind = spec.is_served and node is None and cost_model is None
    if is_blind:
        _check_needs_no_times(spec)
    meter = Meter()
    step_model = (
        None if node or is_blind else _step_model(spec, model, cost_model, on_event, meter, cancel)
    )
    timer_of = None if is_blind else _timers(spec, model, node, step_model)
    space = _with_knobs(space, spec, node, workload, timer_of)
    is_live = (spec.is_local or spec.is_served) and spec.is_live
    context = TuningContext(
        spec=spec,
        model=model,
        sla=sla,
        workload=workload,
        trial_workload=head(workload, spec.probe_requests) if is_live else workload,
        space=space,
        simulator=_simulator(spec, node, model, config, timer_of, step_model),
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
        server_command=_command(spec, config, node),
        meter=meter,
    )
    _lay_groundwork(context, groundwork, cancel)
    return context


def _read(spec: TuningSpec) -> tuple[Workload, Node | None, ModelConfig]:
    """The workload, the described hardware (None: this machine) and the model of a job.

    Raises:
        TunerError, EngineError: what is at fault.
    """
    workload = parse_workload(spec.workload, seed=spec.seed)
    if spec.capacity_table:
        check_has_table(workload)
    node = None if spec.is_local else spec.node()
    if node is None:
        return workload, None, ModelConfig.from_dir(spec.model_path)
    hardware = node.hardware
    if spec.num_devices > hardware.count:
        raise TunerError(f"{spec.num_devices} devices asked for, {hardware} has {hardware.count}")
    return workload, node, node.model


def _check_needs_no_times(spec: TuningSpec) -> None:
    """Raises TunerError where a job cannot do without step times."""
    if spec.capacity_table:
        raise TunerError(
            "a capacity table is simulated, and nothing is known of this server's step times; "
            "name what it runs on (--hardware) or a cost model"
        )


def _max_model_len(config: EngineConfig, model: ModelConfig) -> int:
    return min(config.max_model_len or model.max_positions, model.max_positions)


def _simulator(
    spec: TuningSpec,
    node: Node | None,
    model: ModelConfig,
    config: EngineConfig,
    timer_of: Callable[[ParallelPlan], StepTimer] | None,
    step_model: StepModel | None,
) -> Simulator:
    return Simulator(
        model=model,
        sla=spec.parsed_sla,
        timer_of=timer_of,
        blocks_of=lambda plan: num_kv_blocks(config, model, plan),
        block_size=config.block_size,
        max_model_len=_max_model_len(config, model),
        interval=_interval(node, step_model),
        seed=spec.seed,
        node=node,
        step_scale=spec.step_scale,
    )


def _lay_groundwork(
    context: TuningContext, kept: dict[str, Any] | None, cancel: Cancellation
) -> None:
    """Take over the design that was kept, or simulate it, and tell of it."""
    space = context.space
    if context.simulator.is_blind:
        context.emit("prepared", f"{len(space.plans)} plans; nothing is simulated before trials")
        return
    context.groundwork_key = groundwork_key(context)
    is_kept = (found := find_groundwork(context, kept)) is not None
    if found is not None:
        put_groundwork(context, found)
    else:
        with (design := Meter()).timing(Level.SIMULATED):
            _simulate_design(context, cancel)
        context.design_costs = design.taken()
    context.emit(
        "prepared",
        f"{len(space.plans)} feasible plans ({len(space.pruned)} pruned), "
        f"{len(context.design)} settings simulated{' before' if is_kept else ''}",
        plans=[str(plan) for plan in space.plans],
    )


def _command(spec: TuningSpec, config: EngineConfig, node: Node | None) -> ServerCommand | None:
    """What starts a server for each trial; None where another target is asked for."""
    is_started = spec.is_served and not spec.is_brought
    return server_command(spec, config, node) if is_started else None


def _with_ladders(
    space: Space, timer_of: Callable[[ParallelPlan], StepTimer] | None, *, has_rungs: bool
) -> Space:
    """The space with the thresholds of rungs that its step times advise."""
    if not has_rungs or timer_of is None:
        return replace(space, has_rungs=False)
    plans = [plan for plan in space.plans if plan.modes[1:-1]]
    timers = {plan: timer_of(plan) for plan in plans}
    return replace(space, ladders=advised_ladders(timers, space.default_caps.max_num_seqs))


def _with_knobs(
    space: Space,
    spec: TuningSpec,
    node: Node | None,
    workload: Workload,
    timer_of: Callable[[ParallelPlan], StepTimer] | None,
) -> Space:
    """The space with every knob that trials may turn, and without caps that a described node has
    no room for."""
    has_rungs = not spec.is_served and (node is None or node.has_rungs)
    space = _with_ladders(space, timer_of, has_rungs=has_rungs)
    if spec.is_served and node is None:  # a server's flags express no further knobs
        return space
    if node is not None:
        space = replace(space, refused=refused_caps(space, node, workload))
    if node is None or node.backend.name == OWN:  # only our own scheduler can be told these
        space = replace(space, step_ms=STEP_MS, orders=ORDERS)
    return space


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
    if node is not None and not spec.probe_paced:
        check_room(node, plan, workload)
        return
    # An engine is started with room for the largest caps that are tried.
    check_memory(config, model, plan, workload)


def _step_model(
    spec: TuningSpec,
    model: ModelConfig,
    document: dict[str, Any] | None,
    on_event: OnEvent,
    meter: Meter,
    cancel: Cancellation,
) -> StepModel:
    if document is not None:
        known = StepModel.from_json(json.loads(json.dumps(document, default=str)))
        if not spec.is_served:
            known.refuse_other(weights_of(model, None, spec.device))
        return known
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
        quantisation=spec.quantization,
    )
    with meter.timing(Level.PROFILED, num_devices=spec.num_devices):
        profile = run_profile(wanted, on_event=say, cancel=cancel)
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


def _simulate_design(context: TuningContext, cancel: Cancellation) -> None:
    """Simulate a few settings of every feasible plan; some also at other rates, and some on all
    that trials run, for the surrogate."""
    space, simulator = context.space, context.simulator
    sample = head(context.trial_workload, DESIGN_REQUESTS)
    timers = {plan: simulator.timer(plan) for plan in space.plans}

    def simulate(settings: Settings, workload: Workload, load: Load) -> OperatingPoint:
        cancel.check()
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
    first = {settings.plan: settings for settings in reversed(context.design)}
    some = [first[plan] for plan in space.plans[:: max(1, len(space.plans) // 8)] if plan in first]
    others = [at_rate(sample, factor) for factor in DESIGN_RATES]
    if len(sample) < len(context.trial_workload):
        others.append(head(context.trial_workload, WHOLE_REQUESTS))
    for workload in others:
        load = Load.of(workload)
        for settings in some:
            simulate(settings, workload, load)
