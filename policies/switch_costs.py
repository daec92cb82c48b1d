"""What going from the plan in force to each entry of a capacity table would take."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.spec.inventory import Inventory
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.transition.planning import Slot, Transition, plan_transition
from policies.capacity_state import SwitchCost
from policies.capacity_table import CapacityTable

# The most time that a device to be freed may take to finish its requests: the engine's default.
DRAIN_S = 30.0
# Seconds from the start of a plan's ranks until they can serve.
StartSeconds = Callable[[ParallelPlan], float]


def switch_costs(
    table: CapacityTable,
    plan: ParallelPlan,
    serving: Sequence[Slot],
    *,
    inventory: Inventory,
    model: ModelConfig,
    start_s: StartSeconds,
) -> tuple[SwitchCost, ...]:
    """The cost of going from ``plan``, with replicas in the slots ``serving``, to each entry."""
    return tuple(
        _cost(
            plan_transition(plan, serving, target, inventory=inventory, model=model),
            start_s(target),
            back_start_s=start_s(plan),
        )
        for target in (entry.settings.plan for entry in table.entries)
    )


def _cost(way: Transition, start_s: float, *, back_start_s: float) -> SwitchCost:
    """N replicas that start one after the other take N times as long; if none serves meanwhile,
    requests wait for all of it."""
    ready_s = start_s * way.num_starts
    away_s = 0.0 if way.least_devices else ready_s
    return SwitchCost(
        ready_s=ready_s,
        away_s=away_s,
        back_s=back_start_s + DRAIN_S,
        back_start_s=back_start_s,
    )
