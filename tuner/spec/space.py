"""What a search may choose: plans that fit, and grids of hot settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from engine.spec.errors import EngineError
from engine.spec.feasible import infeasible_reasons, list_plans
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.rungs import Thresholds
from engine.spec.settings import Caps, Order, Settings
from policies.numbers import counted
from tuner.spec.errors import TunerError

THRESHOLDS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
NUM_SEQS = (8, 16, 32, 64, 128, 256)
BATCHED_TOKENS = (128, 256, 512, 1024, 2048, 4096, 8192)
# None: steps as long as the token budget makes them.
STEP_MS = (12, 25, 50, 100, 200, None)
# Orders that go by what a search knows about requests; it knows no priorities.
ORDERS = (Order.FCFS, Order.SHORTEST_PROMPT)
DEFAULT_CAPS = Caps()


@dataclass(frozen=True, kw_only=True)
class PrunedPlan:
    """A plan that was never tried, and why, with the numbers."""

    plan: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Space:
    """Feasible plans, smallest first, and the grids of the hot settings.

    ``has_rungs``: whether the serving system steps on rungs between base and shift; ``ladders`` are
    their thresholds, of the plans where step times advise some. ``step_ms`` and ``orders`` have one
    value if the serving system has no such setting. ``refused`` are caps (sequences, tokens) that a
    plan has no room for, or that its serving system does not start with.
    """

    plans: tuple[ParallelPlan, ...]
    pruned: tuple[PrunedPlan, ...]
    thresholds: tuple[int, ...] = THRESHOLDS
    num_seqs: tuple[int, ...] = NUM_SEQS
    batched_tokens: tuple[int, ...] = BATCHED_TOKENS
    default_caps: Caps = field(default=DEFAULT_CAPS)
    has_rungs: bool = True
    ladders: Mapping[ParallelPlan, Thresholds] = field(default_factory=dict)
    step_ms: tuple[int | None, ...] = (None,)
    orders: tuple[Order, ...] = (Order.FCFS,)
    refused: frozenset[tuple[ParallelPlan, int, int]] = frozenset()

    @property
    def baseline(self) -> Settings:
        """The smallest plan with default settings: what one gets without a tuner."""
        return Settings(plan=self.plans[0], caps=self.default_caps)

    def has_room(self, plan: ParallelPlan, caps: Caps) -> bool:
        """Whether ``plan`` starts with ``caps``, as far as is known."""
        return (plan, caps.max_num_seqs, caps.max_num_batched_tokens) not in self.refused

    @property
    def envelope(self) -> Caps:
        """The most a live engine must be started with to try everything."""
        return Caps(
            max_num_seqs=max(self.num_seqs), max_num_batched_tokens=max(self.batched_tokens)
        )


def build_space(
    model: ModelConfig,
    num_devices: int,
    *,
    check_memory: Callable[[ParallelPlan], object],
    max_model_len: int,
    least_devices: int = 1,
) -> Space:
    """Every plan on ``least_devices``..``num_devices`` devices, split into feasible and pruned.

    ``check_memory`` raises EngineError or TunerError where a plan does not fit.

    Raises:
        TunerError: no plan is feasible, with the reasons of the first ones.
    """
    feasible, pruned = [], []
    for plan in list_plans(num_devices, least_devices=least_devices):
        reasons = infeasible_reasons(plan, model)
        if not reasons:
            try:
                check_memory(plan)
            except (EngineError, TunerError) as error:
                reasons = [str(error)]
        if reasons:
            pruned.append(PrunedPlan(plan=str(plan), reasons=tuple(reasons)))
        else:
            feasible.append(plan)
    if not feasible:
        detail = "; ".join(f"{p.plan}: {p.reasons[0]}" for p in pruned[:4])
        up_to = "up to " if least_devices == 1 else ""
        devices = counted(num_devices, "device")
        raise TunerError(f"no plan on {up_to}{devices} can run this model: {detail}")
    limit = max(BATCHED_TOKENS[0], min(max_model_len * 4, BATCHED_TOKENS[-1]))
    return Space(
        plans=tuple(feasible),
        pruned=tuple(pruned),
        batched_tokens=tuple(n for n in BATCHED_TOKENS if n <= limit),
    )
