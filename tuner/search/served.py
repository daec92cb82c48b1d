"""What trials on a server need: its command, and the caps that it has by default."""

from __future__ import annotations

from engine.spec.config import EngineConfig
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps
from tuner.backends import load_profile
from tuner.described.node import Node
from tuner.hardware import KvFormat, Precision
from tuner.launch.command import System
from tuner.search.spec import TuningSpec
from tuner.servers.command import ServerCommand, cpu_caps, read_system


def server_command(spec: TuningSpec, config: EngineConfig, node: Node | None) -> ServerCommand:
    """How the server of a job is started; its number formats are those of the ``node`` that
    guides the job, else that of the engine's ``config``.

    Raises:
        TunerError: a command that cannot be, or of a program that is not here.
    """
    command = ServerCommand(
        system=read_system(spec.engine),
        model=spec.model_dir,
        precision=Precision.of(config.dtype) if node is None else node.precision,
        prefix=spec.engine_command,
        max_model_len=spec.max_model_len,
        kv=KvFormat.AUTO if node is None else node.backend.kv_cache_dtype,
    )
    command.require_program()
    return command


def server_caps(spec: TuningSpec, node: Node | None, plan: ParallelPlan) -> Caps:
    """Caps of a server if nobody names any: those of the device that it runs on."""
    if node is not None and node.backend.name == spec.engine:
        return node.backend.default_caps
    if spec.device == "cpu" and spec.engine == System.VLLM:
        return cpu_caps(plan.pp * plan.tp)
    return load_profile(spec.engine).default_caps
