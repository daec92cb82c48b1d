"""The slow loop: which entry of the capacity table the next minutes need, and whether to go there.

``decide_capacity`` is pure: the caller brings the time, the forecast and the observations, and
keeps the memory. Hot settings are the fast loop's business (:mod:`policies.controller`).
"""

from __future__ import annotations

import math
from dataclasses import replace

from engine.spec.admission import Admission
from engine.spec.settings import Settings
from policies.busy_rate import SETPOINT
from policies.capacity_learning import (
    is_settling,
    may_miss,
    rate_there,
    remember,
    surely_there,
)
from policies.capacity_state import (
    CapacityDecision,
    CapacityMemory,
    CapacityReason,
    CapacityState,
)
from policies.capacity_table import CarriedRate, cheapest
from policies.capacity_watch import (
    borne_requests,
    is_news,
    is_queue_long,
    is_queue_standing,
)
from policies.constraint import Metric
from policies.decision import Action
from policies.giving_back import due_back, note_enough
from policies.shedding import Overload, begin_anew, lift, limit_admission
from policies.surge import forget_surge

# The queue that grows while devices start is to be worked off within this time.
CATCH_UP_S = 60.0
# While requests are turned away, the limit follows the queue, so the queue is read this often.
SHED_S = 10.0


def settings_after(decision: CapacityDecision, before: Settings) -> Settings:
    """What is to be in force after a decision, where ``before`` is now."""
    settings = decision.entry.settings if decision.action is Action.MOVE else before
    rate_rps, admission = decision.admission_rps, before.admission
    if rate_rps is None:
        admission = None
    elif admission is None or admission.rate_rps != rate_rps:
        admission = Admission(rate_rps=rate_rps)
    return replace(settings, admission=admission)


def is_due(
    memory: CapacityMemory, now_s: float, *, is_urgent: bool, slow_s: float, urgent_s: float
) -> bool:
    """Whether to decide now: after ``slow_s``, or ``urgent_s`` where the SLA is missed, more comes
    than the entry in force carries or too many wait, or ``SHED_S`` while requests are turned away;
    at once where a rise or a queue has just been told from luck, and when fewer devices would have
    done for long enough.

    A queue is heard before a window shows the load that made it, so it is looked at again."""
    last_s, look_s = memory.decided_s, memory.look_s
    if last_s is None or is_news(memory) or (look_s is not None and now_s >= look_s):
        return True
    is_soon = is_urgent or memory.flooded_s is not None
    every_s = min(slow_s, urgent_s) if is_soon else slow_s
    if memory.shedding.commanded_rps is not None:
        every_s = min(every_s, SHED_S)
    return now_s - last_s >= every_s


def decide_capacity(state: CapacityState) -> CapacityDecision:
    """One turn of the slow loop.

    Without fresh data everything stays: an outage of metrics is not silence. More devices are
    taken as soon as the forecast needs them and a change is worth what it costs; fewer only when
    they would have done for the dwell time. A load that no entry carries gets the largest, a
    raised condition and the rate to admit. Where somebody else put another plan in force, it waits
    until a recommendation is applied again.
    """
    state = remember(state)
    return _with_admission(state, _decide_entry(state))


def _decide_entry(state: CapacityState) -> CapacityDecision:
    if state.memory.commanded != state.current.settings.plan:
        return _hold(state, CapacityReason.DRIFT_PAUSED, None)
    if state.forecast is None or state.observed_rps is None:
        return _hold(state, CapacityReason.NO_DATA, None)
    if state.age_s > state.limits.max_data_age_s:
        return _hold(state, CapacityReason.STALE_DATA, None)
    limits, correction = state.limits, state.memory.correction
    peak_rps = state.forecast.peak_rps(limits.chance, caution=state.memory.caution)
    # What is there now is there, whatever was forecast.
    peak_rps = max(peak_rps, rate_there(state))
    needed_rps = peak_rps * (1 + limits.headroom) / correction
    state = replace(state, memory=note_enough(state, needed_rps))
    wanted = cheapest(state.table, needed_rps, most_devices=limits.max_devices)
    if wanted is None:
        return _beyond(state, needed_rps)
    if _carries(state.current, needed_rps):
        return _maybe_down(state, needed_rps)
    if (overload_rps := rate_there(state) / correction - state.current.low_rps) > 0:
        wanted = _with_queue(state, wanted, needed_rps, overload_rps)
    return _maybe_up(state, _without_stop(state, wanted), needed_rps)


def _with_queue(
    state: CapacityState, wanted: CarriedRate, needed_rps: float, overload_rps: float
) -> CarriedRate:
    """The entry that also works off, in ``CATCH_UP_S``, the queue that grows until it is ready; the
    largest there are devices for, where none does."""
    queue_rps = overload_rps * min(state.cost(wanted).ready_s / CATCH_UP_S, 1.0)
    if state.memory.flooded_s is not None and state.queue is not None:
        queue_rps += state.queue.waiting * state.memory.request_size / CATCH_UP_S
    most = state.limits.max_devices
    found = cheapest(state.table, needed_rps + queue_rps, most_devices=most)
    if found is None:
        fitting = [e for e in state.table.entries if most is None or e.num_devices <= most]
        found = fitting[-1]
    return found


def _without_stop(state: CapacityState, wanted: CarriedRate) -> CarriedRate:
    """``wanted``; where all ranks have to stop for it, the next larger entry that is gone to while
    they serve, if there is one."""
    if not state.cost(wanted).away_s:
        return wanted
    most = state.limits.max_devices or math.inf
    larger = (e for e in state.table.entries if wanted.num_devices < e.num_devices <= most)
    return next((e for e in larger if not state.cost(e).away_s), wanted)


def _carries(entry: CarriedRate, rate_rps: float) -> bool:
    return entry.low_rps >= rate_rps


def _beyond(state: CapacityState, needed_rps: float) -> CapacityDecision:
    """No entry carries the forecast: the largest there are devices for, and what to admit."""
    most = state.limits.max_devices
    fitting = [e for e in state.table.entries if most is None or e.num_devices <= most]
    top = fitting[-1] if fitting else state.current
    if top.low_rps > state.current.low_rps:
        decision = _maybe_up(state, top, needed_rps)
    else:
        decision = _hold(state, CapacityReason.BEYOND_TABLE, needed_rps)
    carried_rps = _carried_rps(state, decision.entry)
    if state.is_sla_met is False and surely_there(state) > top.low_rps:
        decision = replace(decision, memory=replace(decision.memory, beyond_s=state.now_s))
    return replace(
        decision,
        action=decision.action if decision.action is Action.MOVE else Action.RAISE_CONDITION,
        admit_rps=carried_rps if (state.observed_rps or 0.0) > carried_rps else None,
    )


def _carried_rps(state: CapacityState, entry: CarriedRate) -> float:
    return entry.low_rps * state.memory.correction


def _with_admission(state: CapacityState, decision: CapacityDecision) -> CapacityDecision:
    """The decision with how many requests to let in: a limit while nothing carries what comes, or
    while more capacity may not be had this hour."""
    memory, in_force = decision.memory, state.admitted_rps
    match decision.reason:
        case CapacityReason.NO_DATA | CapacityReason.STALE_DATA:
            return replace(decision, admission_rps=in_force)
        case CapacityReason.DRIFT_PAUSED:
            admission_rps, shedding = lift(memory.shedding, in_force)
        case _ if decision.action is Action.MOVE and decision.admit_rps is None:
            admission_rps, shedding = lift(memory.shedding, in_force)
        case _:
            if decision.action is Action.MOVE:
                memory = replace(memory, shedding=begin_anew(memory.shedding))
                decision = replace(decision, memory=memory)
            admission_rps, shedding = limit_admission(
                memory.shedding, _overload(state, decision), state.limits.shedding
            )
    return replace(decision, admission_rps=admission_rps, memory=replace(memory, shedding=shedding))


def _overload(state: CapacityState, decision: CapacityDecision) -> Overload:
    assert state.observed_rps is not None, "decided from an observation"
    memory, entry, queue = decision.memory, decision.entry, state.queue
    borne = borne_requests(memory, queue, entry, state.table.sla)
    is_as_before = decision.action is not Action.MOVE and not is_settling(memory.changed_s, state)
    return Overload(
        now_s=state.now_s,
        offered_rps=state.observed_rps / memory.request_size,
        carried_rps=_carried_rps(state, entry) / memory.request_size,
        in_force_rps=state.admitted_rps,
        has_no_way_out=decision.admit_rps is not None
        or decision.reason is CapacityReason.GUARD_PER_HOUR,
        met_rps=_met_rps(state, decision),
        finished_rps=0.0 if queue is None else queue.finished_rps,
        busy_rps=memory.busy_rps(entry),
        is_finish_enough=_is_first_token(entry),
        waiting=0.0 if queue is None else queue.waiting,
        borne=math.inf if borne is None else borne,
        is_queue_long=is_queue_long(memory, queue, entry, state.table.sla),
        is_queue_standing=is_as_before and is_queue_standing(memory, queue, state.now_s),
        is_sla_met=None if _is_first_token(entry) else state.is_sla_met,
        may_miss=may_miss(state.table.sla),
    )


def _met_rps(state: CapacityState, decision: CapacityDecision) -> float | None:
    """Requests a second that meet the SLA although nobody is turned away; None: unknown.

    Those above what is carried mostly wait, each longer than the one before, so the last window
    tells most; a larger entry does no worse. Where TPOT or ITL binds they do not wait yet: prefills
    of some lengthen the steps of all, and only what was seen for a while is believed.
    """
    binding, memory = decision.entry.binding, state.memory
    if binding is not None and binding.metric in (Metric.TPOT_MS, Metric.ITL_MS):
        known = None if decision.action is Action.MOVE else memory.met_rps
        return math.inf if known is None else known / memory.request_size
    if _is_first_token(decision.entry) and _is_queue_short(state, decision):
        return math.inf  # nobody waits for long: whatever missed is over
    if state.admitted_rps is not None:
        return None
    if state.attainment is None:  # too few to tell: as it was before
        return None if memory.met_rps is None else memory.met_rps / memory.request_size
    assert state.observed_rps is not None, "decided from an observation"
    return state.attainment * state.observed_rps / memory.request_size


def _is_queue_short(state: CapacityState, decision: CapacityDecision) -> bool:
    """Whether no more wait than what a limit on admission would leave waiting."""
    borne = borne_requests(decision.memory, state.queue, decision.entry, state.table.sla)
    return state.queue is not None and state.queue.waiting <= SETPOINT * (borne or 0.0)


def _is_first_token(entry: CarriedRate) -> bool:
    """Whether more than is carried misses by waiting: a queue tells of it before the SLA does."""
    return entry.binding is not None and entry.binding.metric in (Metric.TTFT_MS, Metric.E2E_MS)


def _maybe_up(state: CapacityState, wanted: CarriedRate, needed_rps: float) -> CapacityDecision:
    """More capacity: at once, unless a guard forbids it or the change costs more than it gains."""
    if (guard := _guard(state)) is not None:
        return _hold(state, guard, needed_rps)
    if (wait_s := _pays_off_in_s(state, wanted)) > 0:
        look_s = state.now_s + wait_s if math.isfinite(wait_s) else None
        state = replace(state, memory=replace(state.memory, look_s=look_s))
        return _hold(state, CapacityReason.NOT_WORTH_IT, needed_rps)
    is_corrected = state.memory.correction < 1.0 and _carries(
        state.current, needed_rps * state.memory.correction
    )
    reason = CapacityReason.SLA_MISSED if is_corrected else CapacityReason.LOAD_UP
    return _move(state, wanted, reason, needed_rps)


def _pays_off_in_s(state: CapacityState, wanted: CarriedRate) -> float:
    """Seconds until the change is worth it; 0: it is, inf: nothing says that it will be.

    It is where fewer requests miss with the change than without over the forecast's horizon, or
    have missed already since arrivals told of a rise. A forecast of minutes lags behind a rise of
    seconds, and nobody knows how long that lasts; who pays once as much is lost as the price never
    pays more than twice what knowing would have cost (Karlin et al. 1988, ski rental).

    Without the change, all requests of a slot above what the current entry carries wait in a
    growing queue, and so miss. With it, those wait that come while ranks are away, and until the
    queue of these is worked off. A change that keeps ranks serving costs no request.
    """
    cost, forecast, memory = state.cost(wanted), state.forecast, state.memory
    assert forecast is not None, "decided from a forecast"
    if not cost.away_s:
        return 0.0
    limit_rps = state.current.low_rps * memory.correction
    rates = [float(rate) for rate in forecast.rates_rps]
    will_miss = sum(rate * forecast.slot_s for rate in rates if rate > limit_rps)
    surging_rps = (memory.surge.surging_rps or 0.0) * memory.request_size
    rate_rps = max(sum(rates) / len(rates), surging_rps)
    price = cost.missed_requests(rate_rps, wanted.low_rps * memory.correction)
    have_missed = memory.surge.surging_requests * memory.request_size
    if max(will_miss, have_missed) > price:
        return 0.0
    return (price - have_missed) / surging_rps if surging_rps else math.inf


def _maybe_down(state: CapacityState, needed_rps: float) -> CapacityDecision:
    """Fewer devices, once they would have done for long enough."""
    known = due_back(state)
    if not known:
        return _hold(state, CapacityReason.HOLDS, needed_rps)
    known = [each for each in known if not state.cost(each[1]).away_s] or known
    due = [entry for at_s, entry in known if at_s <= state.now_s]
    if not due:
        first_s = min(at_s for at_s, _ in known)
        state = replace(state, memory=replace(state.memory, look_s=first_s))
        return _hold(state, CapacityReason.DWELL, needed_rps)
    if (guard := _guard(state, kept=1)) is not None:
        return _hold(state, guard, needed_rps)
    if state.cost(due[0]).away_s:  # an SLA is not missed to save
        return _hold(state, CapacityReason.NOT_WORTH_IT, needed_rps)
    rest = [at_s for at_s, entry in known if entry.num_devices < due[0].num_devices]
    look_s = max(min(rest), state.now_s + state.limits.min_interval_s) if rest else None
    state = replace(state, memory=replace(state.memory, look_s=look_s))
    return _move(state, due[0], CapacityReason.LOAD_DOWN, needed_rps)


def _guard(state: CapacityState, *, kept: int = 0) -> CapacityReason | None:
    """What forbids a change now; ``kept`` of the hour's changes are for later."""
    memory, limits = state.memory, state.limits
    if memory.changed_s is not None and state.now_s - memory.changed_s < limits.min_interval_s:
        return CapacityReason.GUARD_INTERVAL
    most = max(limits.max_per_h - kept, min(limits.max_per_h, 1))
    if len(memory.changes_s) >= most:
        return CapacityReason.GUARD_PER_HOUR
    return None


def _move(
    state: CapacityState, entry: CarriedRate, reason: CapacityReason, needed_rps: float
) -> CapacityDecision:
    memory = replace(
        state.memory,
        changes_s=(*state.memory.changes_s, state.now_s),
        commanded=entry.settings.plan,
        surge=forget_surge(state.memory.surge),
    )
    return CapacityDecision(
        action=Action.MOVE,
        reason=reason,
        entry=entry,
        needed_rps=needed_rps,
        admit_rps=None,
        memory=memory,
    )


def _hold(
    state: CapacityState, reason: CapacityReason, needed_rps: float | None
) -> CapacityDecision:
    return CapacityDecision(
        action=Action.HOLD,
        reason=reason,
        entry=state.current,
        needed_rps=needed_rps,
        admit_rps=None,
        memory=state.memory,
    )
