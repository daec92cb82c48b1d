"""Chooses the executor of one replica; heavy ones are imported only when chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from engine.executors.pool import RankSource
from engine.executors.protocol import Clock, Executor, IsEnding, StepTimer, never_ends
from engine.executors.ranks import RankProcesses
from engine.spec.config import EngineConfig, ExecutorKind, num_kv_blocks
from engine.spec.errors import EngineError
from engine.spec.extensions import ExtensionPoint, get_extension
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan

# What an entry point of ``gearshift.executors`` names.
MakeExecutor = Callable[[EngineConfig, ModelConfig, ParallelPlan], Executor]


def make_executor(
    config: EngineConfig,
    model: ModelConfig,
    plan: ParallelPlan,
    *,
    timer: StepTimer | None = None,
    clock: Clock | None = None,
    ranks: RankSource | RankProcesses | None = None,
    start_s: float = 0.0,
    is_ending: IsEnding = never_ends,
) -> Executor:
    """The executor ``config`` asks for, not yet started. ``auto``: in process for one rank.

    Only the simulated executor uses ``timer``, ``clock`` (real time by default) and ``start_s``
    (how long its start takes). ``ranks`` lends the process executor its ranks (a pool keeps them
    across executors); other executors ignore it. ``is_ending`` is asked while ranks start. The
    executor in process does not ask it, since it cannot end a start, nor do those that packages
    bring.

    Raises:
        EngineError: inline with several ranks, simulated without a timer, or an extension that no
            installed package brings.
    """
    kind = config.executor
    if kind is ExecutorKind.AUTO:
        kind = ExecutorKind.INLINE if plan.replica_size == 1 else ExecutorKind.PROCESS
    match kind:
        case ExecutorKind.INLINE:
            if plan.replica_size > 1:
                raise EngineError(
                    f"plan {plan} has {plan.replica_size} ranks per replica: executor 'inline' "
                    "runs one; use 'process'"
                )
            from engine.executors.inline import InlineExecutor

            return InlineExecutor(config, model, plan)
        case ExecutorKind.PROCESS:
            from engine.executors.process import ProcessExecutor

            return ProcessExecutor(config, model, plan, ranks=ranks, is_ending=is_ending)
        case ExecutorKind.SIMULATED:
            return _simulated(config, model, plan, timer, clock, start_s, is_ending)
        case ExecutorKind.EXTENSION:
            return _brought(config, model, plan)
        case ExecutorKind.AUTO:
            raise AssertionError("auto was resolved above")
        case _ as never:
            assert_never(never)


def _brought(config: EngineConfig, model: ModelConfig, plan: ParallelPlan) -> Executor:
    if config.executor_name is None:
        raise EngineError("executor 'extension' needs executor_name, one of gearshift.executors")
    make: MakeExecutor = get_extension(ExtensionPoint.EXECUTORS, config.executor_name)
    return make(config, model, plan)


def _simulated(
    config: EngineConfig,
    model: ModelConfig,
    plan: ParallelPlan,
    timer: StepTimer | None,
    clock: Clock | None,
    start_s: float,
    is_ending: IsEnding,
) -> Executor:
    from engine.executors.clock import WallClock
    from engine.executors.simulated import SimulatedExecutor

    if timer is None:
        raise EngineError("executor 'simulated' needs a step timer (a cost model's)")
    return SimulatedExecutor(
        plan=plan,
        model_vocab_size=model.vocab_size,
        num_kv_blocks=num_kv_blocks(config, model, plan),
        timer=timer,
        clock=clock or WallClock(),
        start_s=start_s,
        is_ending=is_ending,
    )
