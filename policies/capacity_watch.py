"""What is looked at between two turns of the slow loop: arrivals and the queue, every few seconds,
so that a rise does not wait for its turn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from policies.busy_rate import felt_from, watch_busy
from policies.capacity_state import CapacityLimits, CapacityMemory, Queue
from policies.capacity_table import CapacityTable, CarriedRate
from policies.constraint import Metric
from policies.sla import Sla
from policies.surge import watch_arrivals


@dataclass(frozen=True, kw_only=True)
class Look:
    """``requests`` that came in ``seconds`` up to ``now_s``, ``ended`` that ended after a first
    token, and the queue then (None: unknown).

    ``observed_rps``: the rate of the last window, of the table's mix, and ``observed_luck`` its
    relative standard deviation under a steady load.
    """

    now_s: float
    seconds: float
    requests: float
    ended: float = 0.0
    queue: Queue | None = None
    observed_rps: float = 0.0
    observed_luck: float = 0.0


def watch(
    memory: CapacityMemory,
    look: Look,
    current: CarriedRate,
    table: CapacityTable,
    limits: CapacityLimits,
) -> CapacityMemory:
    """Take in one look; one of no length says nothing."""
    if look.seconds <= 0:
        return memory
    memory = _with_busy(_with_breaks(memory, look, table), look, current, table)
    carried_rps = carried_requests_rps(memory, current)
    waiting = 0.0 if look.queue is None else look.queue.waiting
    surge = watch_arrivals(
        memory.surge,
        requests=look.requests,
        seconds=look.seconds,
        carried_rps=carried_rps,
        now_s=look.now_s,
        waiting=waiting,
        limits=limits.surge,
    )
    flooded_s = memory.flooded_s
    if not is_queue_long(memory, look.queue, current, table.sla):
        flooded_s = None
    elif flooded_s is None and waiting > memory.surge.waiting:
        flooded_s = look.now_s
    return replace(memory, surge=surge, flooded_s=flooded_s)


def _with_breaks(memory: CapacityMemory, look: Look, table: CapacityTable) -> CapacityMemory:
    """An entry that a window's load was surely above (one standard deviation) would not have done
    just now."""
    if len(memory.enough_since_s) != len(table.entries):
        return memory
    surely_rps = look.observed_rps * max(1 - look.observed_luck, 0.0) / memory.correction
    since = tuple(
        None if surely_rps > entry.low_rps else since_s
        for entry, since_s in zip(table.entries, memory.enough_since_s, strict=True)
    )
    return replace(memory, enough_since_s=since)


def _with_busy(
    memory: CapacityMemory, look: Look, current: CarriedRate, table: CapacityTable
) -> CapacityMemory:
    """With what began, where a queue was felt."""
    queue = look.queue
    borne = borne_requests(memory, queue, current, table.sla)
    if queue is None or borne is None:
        return memory
    busy = watch_busy(
        memory.busy,
        plan=str(current.settings.plan),
        now_s=look.now_s,
        seconds=look.seconds,
        ended=look.ended,
        running=queue.running,
        is_felt=queue.waiting > felt_from(borne),
        request_size=memory.request_size,
    )
    return replace(memory, busy=busy)


def is_news(memory: CapacityMemory) -> bool:
    """Whether a rise or a flood was seen after the last decision."""
    decided_s = -math.inf if memory.decided_s is None else memory.decided_s
    seen = (memory.surge.alarmed_s, memory.flooded_s)
    return any(at_s is not None and at_s > decided_s for at_s in seen)


def carried_requests_rps(memory: CapacityMemory, current: CarriedRate) -> float:
    """Requests as long as they are now that the entry in force carries."""
    return current.low_rps * memory.correction / memory.request_size


def is_queue_long(
    memory: CapacityMemory, queue: Queue | None, current: CarriedRate, sla: Sla
) -> bool | None:
    """Whether the last of those that wait will have waited longer than the SLA bears for a first
    token; None: nobody knows."""
    borne = borne_requests(memory, queue, current, sla)
    return None if queue is None or borne is None else queue.waiting > borne


def borne_requests(
    memory: CapacityMemory, queue: Queue | None, current: CarriedRate, sla: Sla
) -> float | None:
    """How many may wait so that the last of them has its first token within the SLA (Little's law);
    None: nobody knows.

    What is carried within the SLA may be far less than what is finished (where a bound on tokens
    binds, or requests come in gusts), so a queue is worked off at the largest of what is carried,
    what ends, and what began while an earlier one was felt; but no faster than was seen while one
    stood.
    """
    bounds = [c.bound for c in sla.constraints if c.metric in (Metric.TTFT_MS, Metric.E2E_MS)]
    if queue is None or not bounds:
        return None
    worked_rps = memory.shedding.worked_rps or math.inf
    carried_rps = carried_requests_rps(memory, current)
    known_rps = max(carried_rps, queue.finished_rps, memory.busy_rps(current))
    return min(known_rps, worked_rps) * min(bounds) / 1e3


def is_queue_standing(memory: CapacityMemory, queue: Queue | None, now_s: float) -> bool:
    """Whether a queue has been long for so long that whoever ended in the window began with others
    waiting: then no more than these are carried."""
    if queue is None or memory.flooded_s is None:
        return False
    return now_s - memory.flooded_s >= queue.window_s + queue.answer_s
