"""What a command line says of a model that need not be here: its name, format, hardware."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from engine.spec.config import EngineConfig, ExecutorKind
from engine.spec.errors import CheckpointError, PlanError
from engine.spec.model import DType, ModelConfig
from engine.spec.modes import ENDS
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from tuner.backends import list_backends, load_backend
from tuner.described.node import Node
from tuner.described.reshape_cost import reshape_cost
from tuner.hardware import Precision, parse_hardware
from tuner.launch.why_not import why_not
from tuner.profiling.profile import weights_of
from tuner.spec.errors import TunerError
from tuner.work.models import CONFIG, find_quantisation, load_model

AUTO = "auto"
# Ranks on this machine, and engines paced as other hardware, are this project's own.
OWN_BACKEND = "gearshift"
# The default on described hardware: most operators run it, and it was measured on such devices.
DEFAULT_BACKEND = "vllm"


def backend_of(
    named: str | None, *, is_described: bool = True, settings: Sequence[str] = ()
) -> str:
    """The serving system ``named``, else the one that questions about such a place are about; with
    ``settings``, as in ``async_scheduling=on``, changed."""
    usual = DEFAULT_BACKEND if is_described else OWN_BACKEND
    return ",".join([named or usual, *settings])


def describe_node(
    *,
    model: str,
    hardware: str,
    dtype: str | None = None,
    backend: str | None = None,
    block_size: int = 16,
    max_model_len: int | None = None,
) -> Node:
    """The node of a command line: ``model`` by name or folder, ``hardware`` as in ``8xh200``.

    ``dtype`` None or ``auto``: as the model's ``config.json`` or its name says, also of quantised
    weights. ``backend``: as :class:`~tuner.backends.BackendChoice` reads it, None: the default
    one.

    Raises:
        TunerError: an unknown model, hardware, backend or number format, or a context that the
            model does not have.
    """
    shape = load_model(model)
    word = find_quantisation(model) if dtype in (None, AUTO) else dtype
    check_context(max_model_len, shape, model)
    devices = parse_hardware(hardware)
    return Node(
        hardware=devices,
        model=shape,
        precision=read_precision(word, shape),
        backend=load_backend(backend_of(backend), devices.device),
        block_size=block_size,
        max_model_len=max_model_len,
    )


def check_context(max_model_len: int | None, shape: ModelConfig, model: str) -> None:
    """Raises TunerError where ``max_model_len`` is more than the model was made for."""
    if max_model_len is not None and max_model_len > shape.max_positions:
        raise TunerError(
            f"max_model_len={max_model_len}: {model} has a context of {shape.max_positions} "
            "tokens; take at most that many"
        )


def check_served(node: Node, plan: ParallelPlan) -> None:
    """Raises TunerError where the node's backend cannot run ``plan``, with the way out."""
    if (reason := why_not(node.backend.name, plan)) is not None:
        others = [name for name in list_backends() if why_not(name, plan) is None]
        raise TunerError(
            f"plan {plan}: {reason}; take another plan, or a backend that can: {', '.join(others)}"
        )


def check_rungs(node: Node, settings: Settings) -> None:
    """Raises TunerError where steps would run on rungs that the node's backend does not have, with
    the way out: a system that holds weights twice holds those of base and shift.
    """
    between = [mode for mode in settings.modes_in_use if mode not in ENDS]
    if between and not node.has_rungs:
        raise TunerError(
            f"mode {between[0]}: {node.backend.title} steps in base and shift only; add "
            "--rungs base,shift, or take --backend gearshift"
        )


def read_precision(word: str | None, model: ModelConfig) -> Precision:
    """The number format that ``word`` names; None and ``auto`` ask the model.

    Raises:
        TunerError: another word, with the known ones.
    """
    if word in (None, AUTO):
        return Precision.of(model.dtype)
    return Precision.parse(str(word))


def read_rank_dtype(word: str | None, model: ModelConfig) -> DType:
    """What real ranks compute in: as :func:`read_precision`, less what they cannot.

    Raises:
        TunerError: an unknown word, or ``fp8`` or ``int4``, which exist on described hardware only.
    """
    known = f"known are auto, {', '.join(DType)}"
    try:
        precision = read_precision(word, model)
    except TunerError as error:
        raise TunerError(f"dtype {word!r}: {known}") from error
    if precision.is_quantised:
        raise TunerError(
            f"dtype {word!r}: ranks of this engine do not compute in {precision}; {known}; "
            f"described hardware (as in 8xh200) takes {precision}"
        )
    return precision.dtype


def has_checkpoint(model: str) -> bool:
    """Whether ``model`` is a folder that an engine can be started from, not just a name."""
    return (Path(model) / CONFIG).exists()


def checkpoint_weights(name: str, shape: ModelConfig) -> str | None:
    """What ranks on a CPU hold the layers of the model ``name`` in, as its checkpoint is
    (:func:`tuner.profiling.profile.weights_of`); None where they do not read its format. A name
    that is no folder has its ``shape``."""
    try:
        model = ModelConfig.from_dir(name) if has_checkpoint(name) else shape
    except CheckpointError:
        return None
    return weights_of(model, None, "cpu")


def paced_config(config: EngineConfig, node: Node) -> EngineConfig:
    """``config`` for an engine without ranks, paced as ``node``: its memory and number format.
    KV is what steps within the engine's envelope leave room for; replicas that start while others
    serve take as long as is known of such hardware."""
    envelope = config.start_envelope

    def blocks(plan: ParallelPlan) -> int:
        try:
            return node.num_kv_blocks(plan, envelope)
        except TunerError as error:
            raise PlanError(str(error)) from error

    return replace(
        config,
        executor=ExecutorKind.SIMULATED,
        hardware=str(node.hardware),
        dtype=node.precision.dtype,
        block_size=node.block_size,
        kv_blocks_of=blocks,
        start_s_of=lambda plan: reshape_cost(node, plan).seconds,
        has_rungs=node.has_rungs,
    )
