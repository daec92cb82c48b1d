"""From the plan in force to another: the way there, its price, and carrying it out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection

from engine.changeover import Changeover, Ends
from engine.door import Door
from engine.fleet import Fleet
from engine.replica.replica import Replica
from engine.spec.config import EngineConfig
from engine.spec.errors import PolicyError, RequestError
from engine.spec.inventory import Inventory
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.transition.costs import (
    DEFAULT_LIMITS,
    CostBook,
    Price,
    PricedTransition,
    Took,
    TransitionLimits,
)
from engine.transition.planning import Slot, Transition, Way, plan_transition


class Moves:
    """Plans, prices and makes the transitions of one engine. One at a time.

    Plans are those whose shards ranks hold (see ``engine.spec.held``).
    """

    def __init__(
        self,
        config: EngineConfig,
        model: ModelConfig,
        inventory: Inventory,
        *,
        door: Door,
        fleet: Fleet,
        is_closing: threading.Event,
    ) -> None:
        self.costs = CostBook(start_s_of=config.start_s_of)
        self._model = model
        self._inventory = inventory
        self._door = door
        self._fleet = fleet
        self._changeover = Changeover(door, fleet, is_closing=is_closing)

    def prices(self, held: ParallelPlan) -> list[Price]:
        """What each way costs here, measured or estimated for ``held``."""
        return [self.costs.price_of(way, held, DEFAULT_LIMITS) for way in Way]

    def preview(
        self, held: ParallelPlan, new: ParallelPlan, limits: TransitionLimits
    ) -> PricedTransition:
        """How ranks would start and end for ``new``, and at what price."""
        transition = self._transition(held, new, limits)
        price = self.costs.price(transition, new, limits)
        return PricedTransition(transition=transition, price=price)

    def make(
        self,
        ends: Ends,
        limits: TransitionLimits,
        put_in_force: Callable[[Collection[Replica]], None],
    ) -> Took:
        """Start and end ranks; see ``Changeover.run``.

        Raises:
            PolicyError: a request in progress would not fit the new plan.
            RankError and others: ranks did not start.
        """
        new = ends.new.plan
        try:
            took = self._changeover.run(
                self._transition(ends.old.plan, new, limits),
                ends,
                drain_s=limits.drain_s,
                put_in_force=put_in_force,
            )
        except RequestError as error:
            raise PolicyError(f"plan {new}: in progress, {error}") from error
        self.costs.note(took)
        return took

    def _transition(
        self, held: ParallelPlan, new: ParallelPlan, limits: TransitionLimits
    ) -> Transition:
        return plan_transition(
            held,
            self._slots(),
            new,
            inventory=self._inventory,
            model=self._model,
            most_ranks=limits.most_ranks,
        )

    def _slots(self) -> list[Slot]:
        """The slots in which replicas serve. Those that failed for good come last, because the last
        leave first."""
        replicas = self._door.list_replicas()
        keys = [(r.failure is not None, self._fleet.slot_of(r)) for r in replicas]
        return [slot for _, slot in sorted(keys)]
