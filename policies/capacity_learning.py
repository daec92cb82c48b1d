"""What the slow loop makes of the last window: how much of the table's rates an engine was seen to
carry, and how much load is surely there.
"""

from __future__ import annotations

import math
from dataclasses import replace

from policies.capacity_state import HOUR_S, CapacityMemory, CapacityState
from policies.capacity_watch import is_queue_standing
from policies.load_history import surely
from policies.sla import Sla

# The correction by observation lies between this and 1: it only makes the table more cautious.
LEAST_CORRECTION = 0.5
CORRECTION_ALPHA = 0.3
RECOVERY_ALPHA = 0.05
# With an admission limit in force, about as much comes in as is carried. Up to this much more is no
# overload whose end must be waited for.
ABOUT = 0.2
# A rate that missed the SLA is more than is carried: this share of it is taken as carried.
BELOW_MISSED = 0.9
# The share of requests that may miss where the SLA has no bound on attainment, and the least that
# is ever allowed.
USUAL_MISSES = 0.1
LEAST_MISSES = 0.01
# While fewer requests miss than SPENT of those that may, the forecast's margin shrinks: to nothing
# in CAUTION_S (as long as forecasts look ahead) if none miss. It grows again the faster the more
# miss.
SPENT = 0.5
CAUTION_S = 300.0
# After a longer pause, a window speaks only for this much of the time since the one before.
STRETCH_S = 180.0


def remember(state: CapacityState) -> CapacityState:
    """Forget changes older than an hour, and learn from the last window.

    A window that missed the SLA at a rate below what the table promises lowers the correction
    towards a little less than that rate; windows that meet it let it rise again. Neither counts
    while a change or an overload settles: the queue that it left is not the table's error. But
    what ends while a queue stands is all that is carried, whether others are turned away or not.
    """
    memory, limits = state.memory, state.limits
    recent = tuple(at_s for at_s in memory.changes_s if state.now_s - at_s < HOUR_S)
    commanded = memory.commanded or state.current.settings.plan
    memory = replace(
        memory, changes_s=recent, commanded=commanded, decided_s=state.now_s, look_s=None
    )
    if state.request_size is not None:
        size = memory.request_size
        size += CORRECTION_ALPHA * (state.request_size - size)
        memory = replace(memory, request_size=size)
    if state.observed_rps is None or state.age_s > limits.max_data_age_s:
        return replace(state, memory=memory)
    memory = replace(memory, caution=_caution(state))
    admitted_rps = memory.request_size * (state.admitted_rps or math.inf)
    served_rps = min(state.observed_rps, admitted_rps)
    share = served_rps / state.current.low_rps
    is_limited = state.admitted_rps is not None
    is_draining = is_limited and memory.flooded_s is not None
    if is_draining or share > memory.correction * (1 + ABOUT if is_limited else 1):
        memory = replace(memory, overloaded_s=state.now_s)
    if is_settling(memory.changed_s, state):
        return replace(state, memory=replace(memory, met_rps=None))
    if state.attainment is not None and not is_limited:
        met_rps = state.attainment * state.observed_rps
        before_rps = met_rps if memory.met_rps is None else memory.met_rps
        met_rps = before_rps + CORRECTION_ALPHA * (met_rps - before_rps)
        memory = replace(memory, met_rps=met_rps)
    memory = _with_standing_queue(memory, state)
    if is_settling(memory.overloaded_s, state):
        return replace(state, memory=memory)
    correction = memory.correction
    if state.is_sla_met is False:
        carried = max(share * BELOW_MISSED, LEAST_CORRECTION)
        correction += CORRECTION_ALPHA * (min(carried, correction) - correction)
    elif state.is_sla_met:
        # Who is sent no more than a share tells of no more.
        known = min(max(share, correction), 1.0) if is_limited else 1.0
        correction += RECOVERY_ALPHA * (known - correction)
    return replace(state, memory=replace(memory, correction=correction))


def _caution(state: CapacityState) -> float:
    """How much of the forecast's margin is worth holding, by what was missed without it.

    A rise that nothing was held for is heard at once, and costs the requests of a start. A margin
    that few errors of the forecast exceed holds devices all day, whether that costs anybody
    anything or not: tables keep some room, and entries are whole devices. The SLA says how many may
    miss. So the share is moved by what missed less what may, as adaptive conformal inference has it
    (Gibbs and Candes 2021): in the long run no more miss, whatever the load does, or all is held.
    While requests are turned away, or too few ended to tell, it stays.
    """
    caution, since_s = state.memory.caution, state.memory.decided_s
    if state.attainment is None or state.admitted_rps is not None or since_s is None:
        return caution
    seconds = min(max(state.now_s - since_s, 0.0), STRETCH_S)
    over = (1 - state.attainment) / (SPENT * may_miss(state.table.sla)) - 1
    return min(max(caution + over * seconds / CAUTION_S, 0.0), 1.0)


def may_miss(sla: Sla) -> float:
    """The share of requests that may miss their bounds."""
    bound = sla.attainment_bound
    return USUAL_MISSES if bound is None else max(1 - bound, LEAST_MISSES)


def _with_standing_queue(memory: CapacityMemory, state: CapacityState) -> CapacityMemory:
    """Less is carried than promised where not even so much ends off a queue that stands, one
    standard deviation of luck taken off."""
    queue = state.queue
    if queue is None or not is_queue_standing(memory, queue, state.now_s):
        return memory
    share = queue.finished_rps * memory.request_size / state.current.low_rps
    luck = 1 / math.sqrt(max(queue.finished_rps * queue.window_s, 1.0))
    if share * (1 + luck) >= 1:
        return memory
    correction = memory.correction
    carried = max(share * BELOW_MISSED, LEAST_CORRECTION)
    correction += CORRECTION_ALPHA * (min(carried, correction) - correction)
    return replace(memory, correction=correction)


def rate_there(state: CapacityState) -> float:
    """What the last window brought, where it missed the SLA or left a queue, or where luck alone
    would hardly bring it to what the entry in force carries; else what is surely behind it. What
    came since arrivals told of a rise, where that is more."""
    assert state.observed_rps is not None, "decided from an observation"
    memory = state.memory
    surging_rps = (memory.surge.surging_rps or 0.0) * memory.request_size
    return max(surging_rps, _rate_of_window(state))


def _rate_of_window(state: CapacityState) -> float:
    assert state.observed_rps is not None, "decided from an observation"
    if state.is_sla_met is False or state.memory.flooded_s is not None:
        return state.observed_rps
    surely_rps = surely_there(state)
    if surely_rps > state.current.low_rps * state.memory.correction:
        return state.observed_rps
    return surely_rps


def surely_there(state: CapacityState) -> float:
    """The load that the last window would hardly exceed by luck."""
    assert state.observed_rps is not None, "decided from an observation"
    return surely(state.observed_rps, state.observed_luck, state.limits.chance)


def is_settling(since_s: float | None, state: CapacityState) -> bool:
    """Whether what happened at ``since_s`` still shows in windows."""
    return since_s is not None and state.now_s - since_s < state.limits.settle_s
