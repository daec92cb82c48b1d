"""A plan under a load, and how it is run: on described hardware, or as this machine's cost model
says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.spec.modes import ENDS, Mode, ModePin
from tuner.answers.asked import NamedCaps, ServedAs, ThisMachine

if TYPE_CHECKING:
    from engine.executors.protocol import StepTimer
    from engine.spec.config import EngineConfig
    from engine.spec.model import ModelConfig
    from engine.spec.plan import ParallelPlan, PlanSpec
    from engine.spec.settings import Caps, Settings
    from policies.sla import Sla
    from tuner.described.document import ScaledRun
    from tuner.described.machine import Machine
    from tuner.described.title import Asked, Title
    from tuner.simulation.simulate import OnProgress, SimulationResult
    from tuner.step_model.model import StepModel
    from tuner.workload.workload import Workload

MIB = 2**20
LOCAL_NUM_SEQS = 64
LOCAL_BATCHED_TOKENS = 2048
LOCAL_KV_CACHE_MIB = 256


@dataclass(frozen=True, kw_only=True)
class Question:
    """What was asked, whatever the step times come from."""

    model: str
    spec: PlanSpec
    workload: Workload
    sla: Sla | None
    seed: int
    mode: ModePin
    rungs: tuple[Mode, ...] | None
    caps: NamedCaps
    served: ServedAs
    prefix_cache: bool | None
    admit_rps: float | None = None

    @property
    def asked(self) -> Asked:
        """What the title of the answer says of it."""
        from tuner.described.title import Asked

        return Asked(model=self.model, workload=self.workload, sla=self.sla, seed=self.seed)

    @property
    def block_size(self) -> int:
        """Tokens per KV block."""
        return self.served.block_size

    @property
    def max_model_len(self) -> int | None:
        """Context in tokens, None for the model's."""
        return self.served.max_model_len

    def keeps_prefixes(self, usual: bool) -> bool:
        """Whether the prefix cache is on, where it ``usual``-ly is or not."""
        return usual if self.prefix_cache is None else self.prefix_cache

    def warnings(self, *, keeps_prefixes: bool) -> tuple[str, ...]:
        """What may mislead in the answer, wherever the step times come from."""
        if self.workload.shares_beginnings and not keeps_prefixes:
            return (
                "prompts share beginnings, and every one is computed again: add --prefix-cache "
                "to find them",
            )
        return ()

    def settings(
        self, timer: StepTimer, default: Caps, *, has_rungs: bool = True
    ) -> tuple[Settings, tuple[str, ...]]:
        """With the caps named, else ``default``'s; a threshold not named is advised, which is told
        besides.

        Raises:
            PolicyError: a mode that the plan does not have, or a rate of admission that cannot be.
        """
        from engine.spec.admission import Admission
        from engine.spec.planned import planned_settings
        from engine.spec.rungs import rungs_of
        from tuner.search.design import advised_rule

        caps, spec, notes = self.caps.over(default), self.spec, []
        if spec.threshold_tokens is None and spec.plan.shift:
            named = self.rungs and rungs_of(spec.plan, self.rungs)
            modes = named or (spec.plan.modes if has_rungs else ENDS)
            rule = advised_rule(timer, modes, caps.max_num_seqs)
            spec = replace(
                spec,
                threshold_tokens=rule.threshold_tokens,
                rung_thresholds=spec.rung_thresholds or rule.rung_thresholds,
            )
            words = [f"threshold {rule.threshold_tokens} tokens"]
            words += [f"{mode} up to {tokens}" for mode, tokens in spec.rung_thresholds]
            notes.append(f"{', '.join(words)}, as the modes' step times advise")
        settings = planned_settings(spec, caps, pin=self.mode, rungs=self.rungs)
        if self.admit_rps is not None:
            settings = replace(settings, admission=Admission(rate_rps=self.admit_rps))
        return settings, tuple(notes)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Settings and how to run them; ``origin`` is where step times and memory come from.

    ``run_on`` runs any workload with all step times multiplied, ``run`` the one asked about.
    ``interval`` is the 90 % half width of log(true / simulated) step times, None where it is not
    asked for. ``notes`` say what was chosen that nobody named.
    """

    settings: Settings
    workload: Workload
    run_on: Callable[[Workload, float, OnProgress], SimulationResult]
    title: Title
    origin: dict[str, Any]
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()
    interval: float | None = None
    energy: Callable[[SimulationResult], dict[str, Any]] | None = None
    keeps_prefixes: bool = False

    @property
    def run(self) -> ScaledRun:
        """A run of the workload asked about."""
        return partial(self.run_on, self.workload)


def described(question: Question, hardware: str, *, has_intervals: bool = True) -> Case:
    """On hardware that is not here, served by a backend."""
    from tuner.described.document import node_json, node_warnings
    from tuner.described.energy import energy_of
    from tuner.described.parse import check_rungs, check_served
    from tuner.described.steps import NodeSteps, steps_json
    from tuner.described.title import Title

    node = question.served.node(question.model, hardware)
    check_served(node, question.spec.plan)
    settings, notes = question.settings(
        node.timer(question.spec.plan), node.backend.default_caps, has_rungs=node.has_rungs
    )
    check_rungs(node, settings)
    keeps_prefixes = question.keeps_prefixes(node.backend.prefix_cache)

    def run_on(workload: Workload, step_scale: float, on_progress: OnProgress) -> SimulationResult:
        return node.simulate(
            settings,
            workload,
            seed=question.seed,
            keeps_prefixes=keeps_prefixes,
            step_scale=step_scale,
            on_progress=on_progress,
        )

    return Case(
        settings=settings,
        workload=question.workload,
        run_on=run_on,
        title=Title.of_node(node, question.asked),
        origin={
            **node_json(node, settings, question.model),
            "steps": steps_json(NodeSteps(node), settings, question.workload),
        },
        warnings=(
            *node_warnings(node, settings, question.workload),
            *question.warnings(keeps_prefixes=keeps_prefixes),
        ),
        notes=notes,
        interval=node.interval if has_intervals else None,
        energy=(lambda result: energy_of(node, result).to_json()) if node.has_device else None,
        keeps_prefixes=keeps_prefixes,
    )


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
        title=Title.of_machine(
            step_model.machine, known.config.dtype, question.asked, weights=step_model.weights
        ),
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
    from tuner.described.parse import checkpoint_weights
    from tuner.profiling.profile import PLAIN
    from tuner.step_model.files import load_cost_model
    from tuner.work.models import load_model

    model = load_model(question.model)
    config = _local_config(question, machine, model)
    weights = checkpoint_weights(question.model, model)
    step_model = load_cost_model(machine.cost_model, model, dtype=config.dtype, weights=weights)
    return Machine(
        step_model=step_model,
        model=_as_profiled(model, step_model, has_head=weights == PLAIN),
        config=config,
        max_model_len=question.max_model_len,
        keeps_prefixes=question.keeps_prefixes(False),
    )


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
