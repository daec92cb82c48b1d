"""Says which entry of a capacity table an engine should be on, for whoever restarts it.

It is pure like the slow loop (:mod:`policies.capacity_loop`), but has no memory: it tells what the
next minutes need, and leaves dwell, guards and price to whoever acts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from engine.spec.plan import ParallelPlan
from policies.capacity_table import CapacityTable, CarriedRate, cheapest


class AdviceReason(StrEnum):
    """Why this entry."""

    NO_DATA = "no_data"
    HOLDS = "holds"
    LOAD_UP = "load_up"
    LOAD_DOWN = "load_down"
    OTHER_PLAN = "other_plan"
    BEYOND_TABLE = "beyond_table"


@dataclass(frozen=True, kw_only=True)
class Advice:
    """``entry`` is where the engine should be; None: nobody knows its load.

    ``current`` is the entry of the plan that runs, None where the table has none. ``needed_rps`` is
    what has to be carried.
    """

    reason: AdviceReason
    entry: CarriedRate | None
    current: CarriedRate | None
    needed_rps: float | None


def advise(
    table: CapacityTable,
    plan: ParallelPlan,
    rates_rps: Sequence[float],
    *,
    most_devices: int | None = None,
    correction: float = 1.0,
) -> Advice:
    """The cheapest entry that carries the largest of ``rates_rps`` (what comes now, and the peak
    that is forecast), of which this engine was seen to carry the share ``correction``."""
    current = table.find(plan)
    if not rates_rps:
        return Advice(reason=AdviceReason.NO_DATA, entry=None, current=current, needed_rps=None)
    needed_rps = max(rates_rps) / correction
    wanted = cheapest(table, needed_rps, most_devices=most_devices)
    if wanted is None:
        fitting = [
            e for e in table.entries if most_devices is None or e.num_devices <= most_devices
        ]
        return Advice(
            reason=AdviceReason.BEYOND_TABLE,
            entry=fitting[-1] if fitting else current,
            current=current,
            needed_rps=needed_rps,
        )
    return Advice(
        reason=_reason(current, wanted), entry=wanted, current=current, needed_rps=needed_rps
    )


def _reason(current: CarriedRate | None, wanted: CarriedRate) -> AdviceReason:
    if current is None:
        return AdviceReason.OTHER_PLAN
    if current == wanted:
        return AdviceReason.HOLDS
    is_more = wanted.low_rps > current.low_rps
    return AdviceReason.LOAD_UP if is_more else AdviceReason.LOAD_DOWN
