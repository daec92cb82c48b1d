"""Simulation: the engine's own scheduler, a step timer and a virtual clock.

Imports no torch, scikit-learn or pandas. The loop is the live engine's: fill the pipeline with
steps, wait for the oldest, take its tokens in, repeat. Stretches in which only lengths change are
committed in bulk.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from engine.executors.protocol import StepTimer
from engine.modes.chooser import ModeChooser
from engine.spec.config import EngineConfig
from engine.spec.feasible import check_plan
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, ModePin, Order, Settings
from tuner.simulation.log import RunCounts
from tuner.simulation.requests import RequestSource
from tuner.simulation.run import OnProgress, Run, SimulationResult, no_progress
from tuner.simulation.setup import ReplicaSetup
from tuner.simulation.steered_run import SteeredRun
from tuner.simulation.steering import Steering
from tuner.spec.errors import TunerError
from tuner.spec.front_end import NO_FRONT_END, FrontEnd
from tuner.workload.workload import Workload

__all__ = [
    "OnProgress",
    "Ranks",
    "RunCounts",
    "SimulationResult",
    "no_progress",
    "simulate",
]


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """What one replica of a plan runs on: its step times, and KV blocks per rank."""

    timer: StepTimer
    num_kv_blocks: int


RanksOf = Callable[[ParallelPlan], Ranks]


def simulate(
    *,
    model: ModelConfig,
    plan: ParallelPlan,
    threshold_tokens: int,
    caps: Caps,
    workload: Workload,
    timer: StepTimer,
    num_kv_blocks: int,
    block_size: int = 16,
    max_model_len: int | None = None,
    pin: ModePin = ModePin.AUTO,
    order: Order = Order.FCFS,
    seed: int = 0,
    front_end: FrontEnd = NO_FRONT_END,
    keeps_prefixes: bool = False,
    schedules_ahead: bool = False,
    queues_ahead: bool = False,
    on_progress: OnProgress = no_progress,
    steering: Steering | None = None,
    envelope: Caps | None = None,
    ranks_of: RanksOf | None = None,
) -> SimulationResult:
    """Run ``workload`` on a simulated engine; same arguments, same answer.

    ``timer`` gives the step times of one replica; ``num_kv_blocks`` is per rank. With
    ``keeps_prefixes`` the engine's prefix cache is on, and prompts are those the load driver
    sends with ``seed``; else only their lengths count. ``schedules_ahead``: the engine schedules
    each step while the one before runs. ``queues_ahead``: shortly before that ends, as this
    project's engine does with overlap; ``timer.host_seconds`` then hide behind the ranks, except
    before steps that nothing ran ahead of.

    ``steering`` changes settings on the way, within ``envelope`` (by default a live engine's);
    ``ranks_of`` tells what a plan it changes to runs on.

    Raises:
        PlanError: the model cannot run under the plan.
        PolicyError: a mode or threshold the plan does not have, or a change that a live engine
            would refuse.
        TunerError: a change of plan without ``ranks_of``, both ways to look ahead, no KV blocks.
    """
    if schedules_ahead and queues_ahead:
        raise TunerError("schedules_ahead and queues_ahead: an engine does one or the other")
    if num_kv_blocks < 1 or block_size < 1:
        raise TunerError(
            f"num_kv_blocks={num_kv_blocks}, block_size={block_size}: both must be at least 1"
        )
    settings = Settings(plan=plan, threshold_tokens=threshold_tokens, caps=caps, pin=pin)
    setups = _Setups(
        model=model,
        plan=plan,
        ranks=Ranks(timer=timer, num_kv_blocks=num_kv_blocks),
        ranks_of=ranks_of,
        envelope=caps if steering is None else envelope or _envelope(caps),
        block_size=block_size,
        max_model_len=max_model_len or model.max_positions,
        order=order,
        keeps_prefixes=keeps_prefixes,
        schedules_ahead=schedules_ahead,
        queues_ahead=queues_ahead,
        is_watched=steering is not None or workload.closed is not None,
    )
    source = RequestSource(
        workload,
        front_end=front_end,
        seed=seed,
        has_content=keeps_prefixes,
        vocab_size=model.vocab_size,
    )
    if steering is None:
        run = Run(workload, source, plan, setups.of(settings), on_progress)
    else:
        run = SteeredRun(workload, source, settings, setups, on_progress, steering)
    with _uncollected():
        run.to_the_end()
        return run.result(front_end.answer_s)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the collector of cycles: a run makes none, and much that lives to its end, which
    the collector would look through again and again (a fifteenth of the time)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@dataclass(frozen=True, kw_only=True)
class _Setups:
    """What replicas run with in one simulation; only settings change. ``is_watched``: somebody
    outside looks whenever a request ends, whatever the settings."""

    model: ModelConfig
    plan: ParallelPlan
    ranks: Ranks
    ranks_of: RanksOf | None
    envelope: Caps
    block_size: int
    max_model_len: int
    order: Order
    keeps_prefixes: bool
    schedules_ahead: bool
    queues_ahead: bool
    is_watched: bool

    def of(self, settings: Settings) -> ReplicaSetup:
        """Raises PlanError, PolicyError or TunerError as :func:`simulate`."""
        plan, caps = settings.plan, settings.caps
        check_plan(plan, self.model)
        ranks = self._ranks(plan)
        return ReplicaSetup(
            caps=caps,
            envelope=self.envelope,
            chooser=ModeChooser.of(settings),
            timer=ranks.timer,
            num_kv_blocks=ranks.num_kv_blocks,
            block_size=self.block_size,
            max_model_len=self.max_model_len,
            depth=plan.pp,
            order=self.order,
            keeps_prefixes=self.keeps_prefixes,
            schedules_ahead=self.schedules_ahead,
            queues_ahead=self.queues_ahead,
            stops_at_ends=self.is_watched or plan.dp > 1 or caps.max_queue is not None,
        )

    def _ranks(self, plan: ParallelPlan) -> Ranks:
        if plan == self.plan:
            return self.ranks
        if self.ranks_of is None:
            raise TunerError(f"a change to plan {plan}: give ranks_of, which tells its step times")
        return self.ranks_of(plan)


def _envelope(caps: Caps) -> Caps:
    """What a live engine that starts with ``caps`` may be raised to."""
    return EngineConfig(model_dir=Path(), settings=Settings(caps=caps)).start_envelope
