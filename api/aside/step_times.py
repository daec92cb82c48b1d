"""Settings run again in virtual time, by step times of described hardware or by measured ones."""

from __future__ import annotations

from typing import Any

from api.documents.inventory import weights_held
from api.documents.places import is_name
from engine.spec.feasible import check_plan
from engine.spec.inventory import Inventory, kv_bytes_of_rank
from engine.spec.measurement import Measurement
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from tuner.backends import load_backend
from tuner.comparison.replay import RunAt
from tuner.described.node import Node
from tuner.described.parse import AUTO, OWN_BACKEND, read_precision
from tuner.hardware import Precision, parse_hardware
from tuner.simulation.simulate import Ranks, SimulatedEngine, ranks_of_one, simulate
from tuner.spec.look_ahead import LookAhead
from tuner.step_model.model import StepModel
from tuner.step_model.timer import ScaledTimer
from tuner.work.models import find_model, find_quantisation
from tuner.workload.workload import Workload

Json = dict[str, Any]
DEFAULT_KV_BYTES = 256 * 2**20


def node_of(
    question: Json, model: ModelConfig, inventory: Inventory, *, max_model_len: int | None = None
) -> Node:
    """The engine on the described hardware that ``question`` names, with its ``backend``.

    Raises:
        TunerError: an unknown device, backend or number format.
    """
    hardware = parse_hardware(question["hardware"])
    return Node(
        hardware=hardware,
        model=model,
        precision=_precision(question["dtype"], question["model_name"], inventory),
        backend=load_backend(question["backend"] or OWN_BACKEND, hardware.device),
        block_size=inventory.block_size,
        max_model_len=max_model_len,
    )


def _precision(dtype: str | None, model_name: str | None, inventory: Inventory) -> Precision:
    """The format that was asked for, else that of a known model, else the engine's own word: ranks
    that are paced as a quantised model report the format that they compute in."""
    if dtype is not None and dtype != AUTO:
        return Precision.parse(dtype)
    known = find_model(model_name) if model_name is not None and is_name(model_name) else None
    if model_name is None or known is None:
        return Precision.of(inventory.dtype)
    return read_precision(find_quantisation(model_name), known)


def on_node(node: Node) -> RunAt:
    """Runs on hardware that is not here."""

    def run_at(settings: Settings, load: Workload, step_scale: float) -> Measurement:
        return node.simulate(settings, load, step_scale=step_scale).measurement

    return run_at


def by_step_model(
    step_model: StepModel,
    model: ModelConfig,
    inventory: Inventory,
    *,
    max_model_len: int | None = None,
) -> RunAt:
    """Runs by step times that were measured of an engine with this model and inventory.

    Raises:
        TunerError: they were measured with weights held otherwise than the engine's are.
    """
    step_model.refuse_other(weights_held(model, inventory))

    def run_at(settings: Settings, load: Workload, step_scale: float) -> Measurement:
        plan = settings.plan
        check_plan(plan, model)
        ranks = Ranks(
            timer=ScaledTimer(step_model.timer(plan, model, hides_host=True), step_scale),
            num_kv_blocks=blocks_of(inventory, plan, model),
        )
        engine = SimulatedEngine(
            model=model,
            ranks_of=ranks_of_one(plan, ranks),
            block_size=inventory.block_size,
            max_model_len=max_model_len,
            look_ahead=LookAhead.BEFORE_END,  # as the engine does
        )
        return simulate(engine, settings, load).measurement

    return run_at


def blocks_of(inventory: Inventory, plan: ParallelPlan, model: ModelConfig) -> int:
    """KV blocks, as many as the engine has, as far as it said."""
    if inventory.num_kv_blocks is not None:
        return inventory.num_kv_blocks
    kv_bytes = kv_bytes_of_rank(
        plan,
        model,
        inventory.dtype,
        block_size=inventory.block_size,
        usable_bytes=inventory.device_bytes,
        kv_bytes=inventory.kv_bytes or DEFAULT_KV_BYTES,
    )
    per_token = model.kv_bytes_per_token(plan, inventory.dtype)
    return kv_bytes // (per_token * inventory.block_size)
