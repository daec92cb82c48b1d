"""How a tuning job's engines are set up, and whether a plan fits their memory."""

from __future__ import annotations

from engine.replica.devices import held_model, is_cuda
from engine.spec.config import EngineConfig, ExecutorKind, num_kv_blocks
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps
from tuner.described.node import Node
from tuner.described.parse import paced_config
from tuner.launch.why_not import why_not_caps
from tuner.search.design import LEAST_CAPS
from tuner.search.spec import MIB, TuningSpec
from tuner.spec.errors import TunerError
from tuner.spec.space import Space
from tuner.workload.workload import Workload


def engine_config(spec: TuningSpec, model: ModelConfig, node: Node | None) -> EngineConfig:
    """The engine every trial starts from: ranks here, or paced as described hardware."""
    config = EngineConfig(
        model_dir=spec.model_path,
        dtype=spec.rank_dtype(model) if node is None else node.precision.dtype,
        quantisation=spec.quantization,
        device=spec.device,
        block_size=spec.block_size,
        kv_cache_bytes=spec.kv_cache_mib * MIB,
        max_model_len=spec.max_model_len,
        max_devices=spec.num_devices,
        link=spec.parsed_link,
        # Even a single rank gets its own process: like other ranks, it then computes beside the
        # step loop and not in it, so all plans compare fairly.
        executor=ExecutorKind.PROCESS,
    )
    return config if node is None else paced_config(config, node)


def as_held(spec: TuningSpec, config: EngineConfig, model: ModelConfig) -> ModelConfig:
    """``model`` as ranks of our engine here hold it, so that its bytes count; else as it is.

    Raises:
        CheckpointError: the checkpoint is quantised in another format.
    """
    if spec.is_served or not spec.is_local:
        return model
    if is_cuda(config):  # only a device says what it can keep, and none is asked before trials
        return model if config.quantisation is None else model.quantised(config.quantisation)
    return held_model(config, model)


def check_memory(
    config: EngineConfig, model: ModelConfig, plan: ParallelPlan, workload: Workload
) -> None:
    """Refuse a plan whose weights and KV do not fit, or that cannot hold the longest request.

    Raises:
        PlanError, TunerError: with the numbers.
    """
    capacity = num_kv_blocks(config, model, plan) * config.block_size
    longest = max(a.input_tokens + a.output_tokens for a in workload.arrivals)
    if longest > capacity:
        raise TunerError(
            f"the longest request has {longest} tokens, the KV cache of a rank holds {capacity}"
        )
    is_here = config.kv_blocks_of is None and config.device_memory_bytes is None
    if is_here and not config.device.startswith("cuda"):
        _check_host_memory(config, model, plan)


def check_room(node: Node, plan: ParallelPlan, workload: Workload) -> None:
    """Refuse a plan that holds the longest request under none of the caps that are simulated.

    Raises:
        TunerError: with the numbers under those that leave most room.
    """
    longest = int((workload.input_tokens + workload.output_tokens).max())
    memory = node.memory(plan, caps=LEAST_CAPS, needed_kv_tokens=longest)
    if memory.reason is not None:
        raise TunerError(memory.reason)


def refused_caps(
    space: Space, node: Node, workload: Workload
) -> frozenset[tuple[ParallelPlan, int, int]]:
    """Plans with caps (sequences, tokens) that the node's backend does not start with, or whose
    steps leave no room for the longest request."""
    longest = int((workload.input_tokens + workload.output_tokens).max())

    def is_refused(plan: ParallelPlan, caps: Caps) -> bool:
        if why_not_caps(node.backend.name, caps) is not None:
            return True
        memory = node.memory(plan, caps=caps, needed_kv_tokens=longest)
        return memory.reason is not None

    return frozenset(
        (plan, seqs, tokens)
        for plan in space.plans
        for seqs in space.num_seqs
        for tokens in space.batched_tokens
        if is_refused(plan, Caps(max_num_seqs=seqs, max_num_batched_tokens=tokens))
    )


def _check_host_memory(config: EngineConfig, model: ModelConfig, plan: ParallelPlan) -> None:
    import psutil

    per_rank = model.weight_bytes_per_rank(plan, config.dtype) + config.kv_cache_bytes
    available = psutil.virtual_memory().available
    if per_rank * plan.world_size > available:
        raise TunerError(
            f"{plan.world_size} ranks need {per_rank * plan.world_size / 1e9:.3g} GB for weights "
            f"and KV, {available / 1e9:.3g} GB of memory are free"
        )
