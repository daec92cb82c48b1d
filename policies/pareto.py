"""Which operating points no other one beats in everything that counts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from policies.constraint import Op
from policies.points import OperatingPoint
from policies.sla import Sla

NUM_DEVICES = "num_devices"


@dataclass(frozen=True, kw_only=True)
class Aim:
    """One thing that counts: fewer devices, or a number that the SLA bounds."""

    key: str
    is_less_better: bool

    def cost(self, point: OperatingPoint) -> float | None:
        """The number, turned so that less is better; None where it was not observed."""
        if self.key == NUM_DEVICES:
            return float(point.cost_devices)
        estimate = point.metrics.get(self.key)
        if estimate is None:
            return None
        return estimate.value if self.is_less_better else -estimate.value

    def to_json(self) -> dict[str, Any]:
        return {"key": self.key, "direction": "less" if self.is_less_better else "more"}


def aims_of(sla: Sla) -> tuple[Aim, ...]:
    """Devices, and whatever ``sla`` bounds over a run."""
    bounded = {c.key: c.op is Op.AT_MOST for c in sla.per_run}
    return (
        Aim(key=NUM_DEVICES, is_less_better=True),
        *(Aim(key=key, is_less_better=is_less) for key, is_less in bounded.items()),
    )


def pareto_front(
    points: Sequence[OperatingPoint], aims: Sequence[Aim]
) -> tuple[OperatingPoint, ...]:
    """The points that no other is at least as good as in all ``aims`` and better in one.

    Points that lack a number, or whose number is infinite, are no candidates. Sorted by the aims in
    their order.
    """
    costs: dict[int, tuple[float, ...]] = {}
    for index, point in enumerate(points):
        found = [aim.cost(point) for aim in aims]
        known = tuple(cost for cost in found if cost is not None and math.isfinite(cost))
        if len(known) == len(found):
            costs[index] = known
    return tuple(points[index] for index in front_of(costs))


def front_of(costs: Mapping[int, tuple[float, ...]]) -> list[int]:
    """The keys of ``costs`` (less is better) that no other beats, sorted by cost."""
    front: list[int] = []
    for index in sorted(costs, key=lambda i: costs[i]):
        # Whatever beats a point sorts before it, and is beaten by none or by one of the front.
        if not any(_beats(costs[other], costs[index]) for other in front):
            front.append(index)
    return front


def hypervolume(costs: Iterable[tuple[float, float]], reference: tuple[float, float]) -> float:
    """The area between ``reference`` and two-sided ``costs`` that are better than it in both."""
    area, lowest = 0.0, reference[1]
    for first, second in sorted(costs):
        if first < reference[0] and second < lowest:
            area += (reference[0] - first) * (lowest - second)
            lowest = second
    return area


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
