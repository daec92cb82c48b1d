"""What a simulation is told about the engine as a whole, and about one replica under its
settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from engine.executors.protocol import StepTimer
from engine.modes.chooser import ModeChooser
from engine.spec.config import EngineConfig
from engine.spec.feasible import check_plan
from engine.spec.model import ModelConfig
from engine.spec.modes import TABLE
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings, StepOrder
from tuner.simulation.mode_table import modelled_table
from tuner.spec.errors import TunerError
from tuner.spec.front_end import NO_FRONT_END, FrontEnd
from tuner.spec.look_ahead import LookAhead
from tuner.spec.prompt_wait import NO_PROMPT_WAIT, PromptWait


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """What one replica of a plan runs on: its step times, and KV blocks per rank.

    Raises:
        TunerError: no KV blocks.
    """

    timer: StepTimer
    num_kv_blocks: int

    def __post_init__(self) -> None:
        if self.num_kv_blocks < 1:
            raise TunerError(f"num_kv_blocks={self.num_kv_blocks}: must be at least 1")


# May raise PlanError or TunerError for a plan that cannot run.
RanksOf = Callable[[ParallelPlan], Ranks]


def ranks_of_one(known: ParallelPlan, ranks: Ranks) -> RanksOf:
    """The ranks of one plan; any other plan is a TunerError."""

    def ranks_of(plan: ParallelPlan) -> Ranks:
        if plan != known:
            raise TunerError(
                f"step times are known of plan {known} only: give ranks_of, which tells those of "
                f"plan {plan} too"
            )
        return ranks

    return ranks_of


@dataclass(frozen=True, kw_only=True)
class SimulatedEngine:
    """An engine to simulate, whatever settings it runs under.

    ``ranks_of`` tells what a plan runs on. ``max_model_len`` is in tokens (None: what the model
    can do). With ``keeps_prefixes`` the prefix cache is on, and prompts are those the load driver
    sends; else only their lengths count. Before steps that were scheduled ``BEFORE_END`` the
    timer's host seconds hide behind the ranks. ``prompt_wait`` holds prompts back where steps are
    scheduled ``AT_START``. ``step_order`` is what shares a step. ``envelope``
    is the most that a steering may raise caps to (None: what a live engine started with the first
    settings allows). ``devices``: as many may be in use at once while plans change, so that old and
    new ranks may serve side by side (None: all stop for another plan).

    Raises:
        TunerError: a block size below 1.
    """

    model: ModelConfig
    ranks_of: RanksOf
    block_size: int = 16
    max_model_len: int | None = None
    front_end: FrontEnd = NO_FRONT_END
    prompt_wait: PromptWait = NO_PROMPT_WAIT
    look_ahead: LookAhead = LookAhead.NONE
    keeps_prefixes: bool = False
    step_order: StepOrder = StepOrder.MIXED
    envelope: Caps | None = None
    devices: int | None = None

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise TunerError(f"block_size={self.block_size}: must be at least 1")
        if self.devices is not None and self.devices < 1:
            raise TunerError(f"devices={self.devices}: must be at least 1")

    def envelope_above(self, caps: Caps) -> Caps:
        """The most that caps may be raised to when the engine starts with ``caps``."""
        return (
            self.envelope
            or EngineConfig(model_dir=Path(), settings=Settings(caps=caps)).start_envelope
        )


@dataclass(frozen=True, kw_only=True)
class ReplicaSetup:
    """What one replica runs with: ``settings`` of ``engine``, on ``ranks``.

    ``stops_at_ends``: somebody outside looks at the replica when a request ends (a client who
    then sends the next one, a router, an admission limit), so no stretch goes past that.
    """

    engine: SimulatedEngine
    settings: Settings
    ranks: Ranks
    envelope: Caps
    stops_at_ends: bool

    @cached_property
    def chooser(self) -> ModeChooser:
        """The mode rule of the settings; with the pin ``table`` it goes by what the ranks' timer
        tells."""
        plan, table = self.settings.plan, None
        if plan.shift and self.settings.pin == TABLE:
            table = modelled_table(
                self.ranks.timer,
                plan.replica,
                envelope=self.envelope,
                longest=self.max_model_len,
                block_size=self.engine.block_size,
                num_kv_blocks=self.ranks.num_kv_blocks,
            )
        return ModeChooser.of(self.settings, table=table)

    @property
    def max_model_len(self) -> int:
        """Most tokens of a request: what the engine allows and the KV cache holds."""
        allowed = self.engine.max_model_len or self.engine.model.max_positions
        return min(allowed, self.ranks.num_kv_blocks * self.engine.block_size)


def replica_setup(
    engine: SimulatedEngine, settings: Settings, envelope: Caps, *, is_watched: bool
) -> ReplicaSetup:
    """What replicas run with under ``settings``; ``is_watched``: somebody outside looks whenever a
    request ends, whatever the settings.

    Raises:
        PlanError: the model cannot run under the plan.
        TunerError: nothing is known of the plan's ranks.
    """
    plan = settings.plan
    check_plan(plan, engine.model)
    return ReplicaSetup(
        engine=engine,
        settings=settings,
        ranks=engine.ranks_of(plan),
        envelope=envelope,
        stops_at_ends=is_watched or plan.dp > 1 or settings.caps.max_queue is not None,
    )
