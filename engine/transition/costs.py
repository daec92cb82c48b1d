"""What going from plan to plan costs here: measured, or until then estimated and called so."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from engine.spec.errors import PolicyError
from engine.spec.plan import ParallelPlan
from engine.transition.planning import Transition, Way

# How long a leaving replica may take to finish its requests, unless somebody says otherwise.
DEFAULT_DRAIN_S = 30.0
# A day: longer than any request.
MOST_DRAIN_S = 86_400.0


@dataclass(frozen=True, kw_only=True)
class TransitionLimits:
    """What the policy allows a transition. A replica that leaves has ``drain_s`` to finish its
    requests; what is left then goes on elsewhere. ``most_ranks``: devices in use at any moment.

    Raises:
        PolicyError: a number that cannot be.
    """

    drain_s: float = DEFAULT_DRAIN_S
    most_ranks: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.drain_s) and 0 <= self.drain_s <= MOST_DRAIN_S):
            raise PolicyError(f"drain_s={self.drain_s}: must be from 0 to {MOST_DRAIN_S:g} seconds")
        if self.most_ranks is not None and self.most_ranks < 1:
            raise PolicyError(f"most_ranks={self.most_ranks}: must be at least 1")


DEFAULT_LIMITS = TransitionLimits()


@dataclass(frozen=True, kw_only=True)
class Took:
    """What one transition took: ``start_s`` until its last new replica served, ``drain_s`` spent
    on waiting for replicas that left; ``carried`` requests went on on other replicas.
    """

    way: Way
    peak_devices: int
    least_devices: int
    seconds: float
    start_s: float
    drain_s: float
    carried: int

    def to_json(self) -> dict[str, Any]:
        """The form in which whoever asked for the transition is told."""
        return {
            "way": self.way.value,
            "peak_devices": self.peak_devices,
            "least_devices": self.least_devices,
            "start_s": self.start_s,
            "drain_s": self.drain_s,
            "is_measured": True,
            "carried": self.carried,
        }


@dataclass(frozen=True, kw_only=True)
class Price:
    """Seconds of one way: until the new replicas serve, and until the old ones have left.

    ``is_measured``: as it was here the last time. Else ``start_s`` follows from the start of the
    engine's first ranks or from described hardware, None where neither is known, and ``drain_s``
    is the most it may take.
    """

    way: Way
    start_s: float | None
    drain_s: float
    is_measured: bool


@dataclass(frozen=True, kw_only=True)
class PricedTransition:
    """A way to another plan, and what it costs."""

    transition: Transition
    price: Price

    def to_json(self) -> dict[str, Any]:
        """As a dry run tells it; the keys of :meth:`Took.to_json`."""
        return {
            "way": self.transition.way.value,
            "peak_devices": self.transition.peak_devices,
            "least_devices": self.transition.least_devices,
            "start_s": self.price.start_s,
            "drain_s": self.price.drain_s,
            "is_measured": self.price.is_measured,
            "carried": None,
        }


@dataclass(kw_only=True)
class CostBook:
    """Prices of one engine. ``start_s_of``: what is known of a plan's start beforehand."""

    start_s_of: Callable[[ParallelPlan], float] | None = None
    first_start_s: float | None = None
    _took: dict[Way, Took] = field(default_factory=dict)

    def note(self, took: Took) -> None:
        self._took[took.way] = took

    def last(self, way: Way) -> Took | None:
        """How it went the last time, None where it never did."""
        return self._took.get(way)

    def price(self, transition: Transition, plan: ParallelPlan, limits: TransitionLimits) -> Price:
        """What ``transition`` to ``plan`` will cost."""
        return self.price_of(
            transition.way,
            plan,
            limits,
            num_starts=transition.num_starts,
            num_retreats=transition.num_retreats,
        )

    def price_of(
        self,
        way: Way,
        plan: ParallelPlan,
        limits: TransitionLimits,
        *,
        num_starts: int = 1,
        num_retreats: int = 1,
    ) -> Price:
        if (took := self.last(way)) is not None:
            return Price(way=way, start_s=took.start_s, drain_s=took.drain_s, is_measured=True)
        once_s = self.first_start_s if self.start_s_of is None else self.start_s_of(plan)
        starts_s = None if once_s is None else once_s * num_starts
        waits = 0 if way in (Way.ADD, Way.STOP_AND_CARRY) else num_retreats
        return Price(
            way=way,
            start_s=0.0 if way is Way.REMOVE else starts_s,
            drain_s=limits.drain_s * waits,
            is_measured=False,
        )
