"""A plan under a load on this machine, as its cost model knows it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.answers.asked import ThisMachine
from tuner.answers.cases import Case, Question

if TYPE_CHECKING:
    from engine.spec.config import EngineConfig
    from engine.spec.model import ModelConfig
    from engine.spec.plan import ParallelPlan
    from engine.spec.settings import Caps
    from tuner.described.machine import Machine
    from tuner.simulation.simulate import OnProgress, SimulationResult
    from tuner.step_model.model import StepModel
    from tuner.workload.workload import Workload

MIB = 2**20
LOCAL_NUM_SEQS = 64
LOCAL_BATCHED_TOKENS = 2048
LOCAL_KV_CACHE_MIB = 256


def on_this_machine(
    question: Question, machine: ThisMachine, *, has_intervals: bool = True
) -> Case:
    """On this machine, as its cost model knows it."""
    from tuner.described.steps import MachineSteps, steps_json
    from tuner.described.title import Title

    known = local_machine(question, machine)
    plan, step_model = question.spec.plan, known.step_model
    settings, notes = question.settings(known.timer(plan), local_caps())

    def run_on(workload: Workload, step_scale: float, on_progress: OnProgress) -> SimulationResult:
        return known.simulate(
            settings,
            workload,
            seed=question.seed,
            step_scale=step_scale,
            on_progress=on_progress,
        )

    steps = MachineSteps(machine=known, num_devices=max(plan.world_size, step_model.max_ranks))
    doubts = _doubts(step_model, known.model, plan)
    return Case(
        settings=settings,
        workload=question.workload,
        run_on=run_on,
        title=Title.of_machine(step_model.machine, known.config.dtype, question.asked),
        origin={
            **_local_origin(question, known),
            "steps": steps_json(steps, settings, question.workload),
        },
        warnings=(
            *question.workload.warnings,
            *doubts,
            *question.warnings(keeps_prefixes=known.keeps_prefixes),
        ),
        notes=(
            *notes,
            f"cost model {step_model.id} of {step_model.machine}{step_model.other_weights}",
        ),
        interval=step_model.error.plan_interval if has_intervals else None,
        keeps_prefixes=known.keeps_prefixes,
    )


def local_machine(question: Question, machine: ThisMachine) -> Machine:
    """Our engine here, as the cost model that ``machine`` names knows it."""
    from tuner.described.machine import Machine
    from tuner.profiling.profile import PLAIN
    from tuner.step_model.files import load_cost_model
    from tuner.work.models import load_model

    model = load_model(question.model)
    config = _local_config(question, machine, model)
    weights = _weights(question.model, model)
    step_model = load_cost_model(machine.cost_model, model, dtype=config.dtype, weights=weights)
    return Machine(
        step_model=step_model,
        model=_as_profiled(model, step_model, has_head=weights == PLAIN),
        config=config,
        max_model_len=question.max_model_len,
        keeps_prefixes=question.keeps_prefixes(False),
    )


def _weights(name: str, shape: ModelConfig) -> str | None:
    """What the checkpoint of the model ``name`` has its layers in; None where ranks here do not
    read its format."""
    from engine.spec.errors import CheckpointError
    from engine.spec.model import ModelConfig
    from tuner.described.parse import has_checkpoint
    from tuner.profiling.profile import weights_of

    try:
        model = ModelConfig.from_dir(Path(name)) if has_checkpoint(name) else shape
    except CheckpointError:
        return None
    return weights_of(model, None, "cpu")


def _as_profiled(shape: ModelConfig, step_model: StepModel, *, has_head: bool) -> ModelConfig:
    """The model as ranks hold it whose layers are what was profiled; ``has_head``: the head with
    them, as where a plain checkpoint is quantised at its load."""
    from engine.spec.quantisation import WeightFormat
    from tuner.profiling.profile import PLAIN

    if step_model.weights in (None, PLAIN):
        return shape
    held = shape.quantised(WeightFormat(step_model.weights))
    return held.holding(is_kept=True, has_head=has_head)


def local_caps() -> Caps:
    """The caps of our engine where none are named."""
    from engine.spec.settings import Caps

    return Caps(max_num_seqs=LOCAL_NUM_SEQS, max_num_batched_tokens=LOCAL_BATCHED_TOKENS)


def _local_config(question: Question, machine: ThisMachine, model: ModelConfig) -> EngineConfig:
    from engine.spec.config import EngineConfig, LinkEmulation
    from engine.spec.feasible import check_plan
    from engine.spec.settings import Settings
    from tuner.described.parse import check_context, read_rank_dtype

    plan, kv_cache_mib = question.spec.plan, machine.kv_cache_mib
    check_plan(plan, model)
    check_context(question.max_model_len, model, question.model)
    return EngineConfig(
        model_dir=Path(question.model),
        settings=Settings(plan=plan),
        dtype=read_rank_dtype(question.served.dtype, model),
        block_size=question.block_size,
        kv_cache_bytes=(LOCAL_KV_CACHE_MIB if kv_cache_mib is None else kv_cache_mib) * MIB,
        link=LinkEmulation.parse(machine.link) if machine.link else None,
    )


def _local_origin(question: Question, known: Machine) -> dict[str, Any]:
    from tuner.described.document import model_json

    step_model = known.step_model
    return {
        "model": {"name": question.model, **model_json(known.model)},
        "dtype": known.config.dtype.value,
        "cost_model": {
            "id": step_model.id,
            "machine": str(step_model.machine),
            "interval": step_model.error.plan_interval,
            "weights": step_model.weights,
        },
        "memory": _local_memory(known.config, known.model, question.spec.plan),
    }


def _local_memory(config: EngineConfig, model: ModelConfig, plan: ParallelPlan) -> dict[str, Any]:
    from engine.spec.config import num_kv_blocks

    blocks = num_kv_blocks(config, model, plan)
    return {
        "weight_bytes_per_rank": model.weight_bytes_per_rank(plan, config.dtype),
        "kv_bytes_per_rank": config.kv_cache_bytes,
        "kv_bytes_per_token": model.kv_bytes_per_token(plan, config.dtype),
        "kv_tokens": blocks * config.block_size,
        "block_size": config.block_size,
        "num_kv_blocks": blocks,
    }


def _doubts(step_model: StepModel, model: ModelConfig, plan: ParallelPlan) -> list[str]:
    """What about the machine may make the answer wrong."""
    other_model, machine = step_model.check_model(model), step_model.machine
    found = [other_model] if other_model else []
    if plan.world_size > step_model.max_ranks:
        found.append(
            f"plan {plan} has {plan.world_size} ranks; at most {step_model.max_ranks} were timed "
            "at once on this machine, so its numbers extrapolate as if each rank had a core"
        )
    busy_cores = plan.world_size * machine.threads_per_rank
    if machine.device == "cpu" and busy_cores >= machine.num_cores:
        found.append(
            f"the ranks of plan {plan} are simulated as if they had all {machine.num_cores} cores "
            "of this machine to themselves; its HTTP server, and clients on the same machine, take "
            "of them too, so less is carried than told"
        )
    return found
