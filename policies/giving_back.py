"""When fewer devices are enough: the slow loop's rule for giving them back.

To keep a device that may be needed again or to give it back and start it anew is the ski rental
problem: to keep it for as long as a return costs, and then to give it back, takes at most twice
the device time of whoever knows what comes, and nobody who does not know it can promise less
(Karlin et al. 1988; for servers: Lin, Wierman, Andrew and Thereska 2011). So the dwell is that
break-even, from what starts and drains take here; it is longer only where loads were seen to come
back later than that (as the average case of the same problem has it: Karlin et al. 1994).
"""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

from policies.capacity_learning import may_miss
from policies.capacity_state import CapacityMemory, CapacityState
from policies.capacity_table import CarriedRate
from policies.forecasters import LEVEL_SLOTS

# Few returns of a load are known, so the next one often takes longer than the longest of them:
# devices are kept this many times as long.
PATIENCE = 2.0


def note_enough(state: CapacityState, needed_rps: float) -> CapacityMemory:
    """Note since when each entry would have been enough without a break: with ``down_headroom`` to
    spare, however lucky the last minutes were, and while nobody is turned away."""
    entries, memory = state.table.entries, state.memory
    before = memory.enough_since_s
    if len(before) != len(entries):
        before = (None,) * len(entries)
    asked_rps = needed_rps * (1 + max(state.limits.down_headroom, _luck(state)))
    is_missed = state.is_sla_met is False or memory.flooded_s is not None
    is_limited = state.admitted_rps is not None
    since = tuple(
        None
        if is_missed or is_limited or entry.low_rps < asked_rps
        else (state.now_s if since_s is None else since_s)
        for entry, since_s in zip(entries, before, strict=True)
    )
    return replace(memory, enough_since_s=since)


def due_back(state: CapacityState) -> list[tuple[float, CarriedRate]]:
    """Entries of fewer devices that would do, fewest first, each with the time from which it may be
    gone to."""
    known = zip(state.table.entries, state.memory.enough_since_s, strict=True)
    return [
        (since_s + dwell_s(state, entry), entry)
        for entry, since_s in known
        if since_s is not None and entry.num_devices < state.current.num_devices
    ]


def dwell_s(state: CapacityState, entry: CarriedRate) -> float:
    """How long ``entry`` must have done before it is gone to.

    The break-even, and no less than the operator says. A load that came back so far within some
    minutes is waited for; so is one that nothing carried: of that load every device is missed. Who
    has not been watched for as long yet may bring any load back.
    """
    limits, forecast, beyond_s = state.limits, state.forecast, state.memory.beyond_s
    assert forecast is not None, "decided from a forecast"
    least_s = max(limits.dwell_s, break_even_s(state, entry))
    longest_s = max(longest_dwell_s(state, entry), least_s)
    if beyond_s is not None and state.now_s - beyond_s < longest_s:
        return longest_s
    if len(forecast.history) * forecast.slot_s < longest_s:
        return longest_s
    level_rps = entry.low_rps * state.memory.correction
    returns_s = forecast.returns_s(level_rps, limits.chance, within_s=longest_s)
    return min(max(least_s, PATIENCE * returns_s), longest_s)


def break_even_s(state: CapacityState, entry: CarriedRate) -> float:
    """Seconds after which devices that were kept have taken as much device time as giving them back
    and starting them again takes: both starts, and the drain."""
    cost = state.cost(entry)
    freed = state.current.num_devices - entry.num_devices
    both = state.current.num_devices + entry.num_devices
    return cost.back_s + both * cost.ready_s / freed


def longest_dwell_s(state: CapacityState, entry: CarriedRate) -> float:
    """The longest that a load is waited for.

    One that comes back at once is missed while devices start, and for about as long until the queue
    is worked off. If that happens no more often than every so many seconds, no more requests miss
    than the SLA lets miss.
    """
    longest_s = 2 * state.cost(entry).back_start_s / may_miss(state.table.sla)
    return min(longest_s, state.limits.longest_dwell_s)


def _luck(state: CapacityState) -> float:
    """How much more than the last minutes brought the load behind them may be."""
    assert state.forecast is not None, "decided from a forecast"
    level = state.forecast.history.newest(LEVEL_SLOTS)
    return NormalDist().inv_cdf(max(state.limits.chance, 0.5)) * level.mean_luck
