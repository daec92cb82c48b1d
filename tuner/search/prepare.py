"""What comes before the first trial: everything is read, profiled if need be, and simulated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from engine.executors.protocol import StepTimer
from engine.spec.config import EngineConfig, num_kv_blocks
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from tuner.capacity.table import check_has_table
from tuner.described.node import Node
from tuner.hardware import Hardware
from tuner.launch.why_not import OWN, why_not
from tuner.search.context import OnEvent, TuningContext
from tuner.search.costs import Meter
from tuner.search.design import advised_ladders
from tuner.search.feasibility import as_held, check_memory, check_room, engine_config, refused_caps
from tuner.search.groundwork import lay_groundwork
from tuner.search.served import server_command
from tuner.search.simulator import Simulator
from tuner.search.spec import TuningSpec
from tuner.search.step_times import StepTimes, find_step_times
from tuner.servers.command import ServerCommand
from tuner.spec.cancel import Cancellation
from tuner.spec.errors import TunerError
from tuner.spec.space import ORDERS, STEP_MS, Space, build_space
from tuner.step_model.model import StepModel
from tuner.step_model.quality import Quality
from tuner.workload.judged import check_judged
from tuner.workload.parse import parse_workload
from tuner.workload.slices import head
from tuner.workload.workload import Workload


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
    sla = spec.parsed_sla  # before work that a mistake in it would waste
    workload, node, model = _read(spec)
    config = engine_config(spec, model, node)
    model = as_held(spec, config, model)
    cancel.check()
    space = build_space(
        model,
        spec.num_devices,
        check_memory=lambda plan: _check_plan(spec, node, config, plan, model, workload),
        max_model_len=model.context_tokens(config.max_model_len),
        least_devices=spec.num_devices if spec.uses_all_devices else 1,
    )
    meter = Meter()
    times = find_step_times(
        spec, model, node, cost_model, on_event=on_event, meter=meter, cancel=cancel
    )
    if times.is_blind:
        _check_needs_no_times(spec)
    space = _with_knobs(space, spec, node, workload, times.timer_of)
    is_live = (spec.is_local or spec.is_served) and spec.is_live
    hardware = None if node is None else node.hardware
    context = TuningContext(
        spec=spec,
        model=model,
        sla=sla,
        workload=workload,
        trial_workload=head(workload, spec.probe_requests) if is_live else workload,
        space=space,
        simulator=_simulator(times, config),
        config=replace(config, envelope=space.envelope, threads_per_rank=times.threads_per_rank),
        max_live_ranks=times.max_live_ranks if is_live else 0,
        cost_model=times.step_model,
        hardware=hardware,
        on_event=on_event,
        warnings=_warnings(spec, model, hardware, times.step_model, workload),
        server_command=_command(spec, config, node),
        meter=meter,
    )
    lay_groundwork(context, groundwork, cancel)
    return context


def _read(spec: TuningSpec) -> tuple[Workload, Node | None, ModelConfig]:
    """The workload, the described hardware (None: this machine) and the model of a job.

    Raises:
        TunerError, EngineError: what is at fault.
    """
    workload = parse_workload(spec.workload, seed=spec.seed)
    check_judged(workload, spec.parsed_sla)
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


def _simulator(times: StepTimes, config: EngineConfig) -> Simulator:
    spec, model = times.spec, times.model
    return Simulator(
        model=model,
        sla=spec.parsed_sla,
        timer_of=times.timer_of,
        blocks_of=lambda plan: num_kv_blocks(config, model, plan),
        block_size=config.block_size,
        max_model_len=model.context_tokens(config.max_model_len),
        interval=times.interval,
        seed=spec.seed,
        node=times.node,
        step_scale=spec.step_scale,
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
