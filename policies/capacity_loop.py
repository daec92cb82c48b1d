"""The slow loop: which entry of the capacity table the next minutes need, and whether to go there.

``decide_capacity`` is pure: the caller brings the time, the forecast and the observations, and
keeps the memory. Hot settings are the fast loop's business (:mod:`policies.controller`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum
from statistics import NormalDist

from engine.spec.admission import Admission
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.capacity_table import CapacityTable, CarriedRate, cheapest
from policies.decision import Action
from policies.errors import PolicyInputError
from policies.forecast import Forecast
from policies.shedding import Overload, SheddingLimits, SheddingMemory, lift, limit_admission

HOUR_S = 3600.0
# Bounds of the correction by observation: it goes towards caution only.
LEAST_CORRECTION = 0.5
CORRECTION_ALPHA = 0.3
RECOVERY_ALPHA = 0.05
# With a limit in force about what is carried comes in: that is no overload to wait for the end of.
ABOUT = 0.2
# What was carried is below the rate that missed, by about this factor.
BELOW_MISSED = 0.9
# A queue that grew while devices started shall be gone in as long.
CATCH_UP_S = 60.0
# Of so few returns of a load the longest is often exceeded: that many times as long is waited.
PATIENCE = 2.0


class CapacityReason(StrEnum):
    """Why. The set is closed: metrics and the audit count by it."""

    NO_DATA = "no_data"
    STALE_DATA = "stale_data"
    HOLDS = "holds"
    LOAD_UP = "load_up"
    LOAD_DOWN = "load_down"
    SLA_MISSED = "sla_missed"
    BEYOND_TABLE = "beyond_table"
    DWELL = "dwell"
    GUARD_INTERVAL = "guard_interval"
    GUARD_PER_HOUR = "guard_per_hour"
    NOT_WORTH_IT = "not_worth_it"
    DRIFT_PAUSED = "drift_paused"


@dataclass(frozen=True, kw_only=True)
class CapacityLimits:
    """How eager the slow loop is.

    The horizon's peak must be carried with ``chance``, and ``headroom`` on top. Fewer devices are
    taken only where the smaller entry would have done for ``dwell_s`` without a break, with
    ``down_headroom`` on top; for longer, up to ``longest_dwell_s``, where loads above it were seen
    to come back later than that. ``min_interval_s`` lies between two changes and ``max_per_h`` of
    them in an hour (the policy's guards); the last of these is kept for the way up. Nothing is
    learned from misses until ``settle_s`` after a change or an overload. ``shedding``: when
    requests are turned away.

    Raises:
        PolicyInputError: a limit outside its range.
    """

    chance: float = 0.9
    headroom: float = 0.0
    down_headroom: float = 0.1
    dwell_s: float = 300.0
    longest_dwell_s: float = 1800.0
    min_interval_s: float = 60.0
    max_per_h: int = 4
    settle_s: float = 120.0
    max_data_age_s: float = 60.0
    max_devices: int | None = None
    shedding: SheddingLimits = field(default_factory=SheddingLimits)

    def __post_init__(self) -> None:
        checks = (
            (0 < self.chance < 1, f"chance={self.chance}: must be above 0 and below 1"),
            (self.headroom >= 0, f"headroom={self.headroom}: below 0"),
            (self.down_headroom >= 0, f"down_headroom={self.down_headroom}: below 0"),
            (self.dwell_s >= 0, f"dwell_s={self.dwell_s}: below 0"),
            (
                self.longest_dwell_s >= 0,
                f"longest_dwell_s={self.longest_dwell_s}: below 0",
            ),
            (self.min_interval_s >= 0, f"min_interval_s={self.min_interval_s}: below 0"),
            (self.max_per_h >= 1, f"max_per_h={self.max_per_h}: below 1"),
        )
        for is_fine, message in checks:
            if not is_fine:
                raise PolicyInputError(f"capacity limits: {message}")


@dataclass(frozen=True, kw_only=True)
class SwitchCost:
    """What going to an entry takes: ``ready_s`` until it carries requests, ``away_s`` of them
    without any rank serving (0 where old and new serve side by side)."""

    ready_s: float = 0.0
    away_s: float = 0.0

    def missed_requests(self, rate_rps: float, capacity_rps: float) -> float:
        """Requests that wait because of the change: those that come while ranks are away, and
        those that come while the queue of the former is worked off."""
        spare = 1 - min(rate_rps / capacity_rps, 0.95)
        return rate_rps * self.away_s / spare


@dataclass(frozen=True, kw_only=True)
class CapacityMemory:
    """What one decision hands to the next.

    ``changes_s``: when capacity was changed in the last hour. ``lower_since_s``: since when fewer
    devices would do. ``overloaded_s``: when more came last than the entry in force carries.
    ``correction``: the share of the table's rates that this engine was seen to carry, from 0.5
    to 1. ``commanded``: the plan that should be in force. ``decided_s``: when it was looked at
    last. ``shedding``: what was done about requests beyond that. ``request_size``: requests of the
    table's mix that one request amounted to lately, smoothed.
    """

    changes_s: tuple[float, ...] = ()
    lower_since_s: float | None = None
    overloaded_s: float | None = None
    correction: float = 1.0
    commanded: ParallelPlan | None = None
    decided_s: float | None = None
    shedding: SheddingMemory = field(default_factory=SheddingMemory)
    request_size: float = 1.0

    @property
    def changed_s(self) -> float | None:
        """When capacity was changed last."""
        return self.changes_s[-1] if self.changes_s else None


@dataclass(frozen=True, kw_only=True)
class CapacityState:
    """Everything a decision depends on.

    ``current`` is the entry in force. ``forecast`` None: no data came; it is ``age_s`` old.
    ``observed_rps`` is the rate of the last window, of the table's mix, with what was turned away,
    and ``observed_luck`` its relative standard deviation under a steady load; ``is_sla_met`` how
    the rest was judged (None: too few requests). ``request_size``: requests of that mix that one
    request amounts to in it (None: unknown). ``admitted_rps`` requests, of whatever length, are let
    in at most (None: whatever comes). ``costs``: of going to each entry of the table, in its order.
    """

    table: CapacityTable
    now_s: float
    current: CarriedRate
    forecast: Forecast | None
    observed_rps: float | None = None
    observed_luck: float = 0.0
    is_sla_met: bool | None = None
    request_size: float | None = None
    admitted_rps: float | None = None
    age_s: float = 0.0
    costs: tuple[SwitchCost, ...] = ()
    memory: CapacityMemory = field(default_factory=CapacityMemory)
    limits: CapacityLimits = field(default_factory=CapacityLimits)

    def cost(self, entry: CarriedRate) -> SwitchCost:
        """Of going to ``entry``; nothing where nobody said."""
        index = self.table.entries.index(entry)
        return self.costs[index] if index < len(self.costs) else SwitchCost()


@dataclass(frozen=True, kw_only=True)
class CapacityDecision:
    """Which entry should be in force. ``needed_rps``: what it has to carry, headroom included.

    ``admit_rps``: the rate of the table's mix above which requests miss, where the load is beyond
    everything that the engine can be made to carry; None: no need. ``admission_rps`` requests, of
    whatever length, are to be let in at most from now on (None: whatever comes; it may be
    forbidden to do otherwise). ``memory`` goes into the next state.
    """

    action: Action
    reason: CapacityReason
    entry: CarriedRate
    needed_rps: float | None
    admit_rps: float | None
    memory: CapacityMemory
    admission_rps: float | None = None


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
    """Whether to decide now: after ``slow_s``, or ``urgent_s`` where the SLA is missed or more
    comes than the entry in force carries."""
    last_s = memory.decided_s
    return last_s is None or now_s - last_s >= (urgent_s if is_urgent else slow_s)


def decide_capacity(state: CapacityState) -> CapacityDecision:
    """One turn of the slow loop.

    Without fresh data everything stays: an outage of metrics is not silence. More devices are
    taken as soon as the forecast needs them and a change is worth what it costs; fewer only when
    they would have done for the dwell time. A load that no entry carries gets the largest, a
    raised condition and the rate to admit. Where somebody else put another plan in force, it waits
    until a recommendation is applied again.
    """
    state = _remember(state)
    return _with_admission(state, _decide_entry(state))


def _decide_entry(state: CapacityState) -> CapacityDecision:
    if state.memory.commanded != state.current.settings.plan:
        return _hold(state, CapacityReason.DRIFT_PAUSED, None)
    if state.forecast is None or state.observed_rps is None:
        return _hold(state, CapacityReason.NO_DATA, None)
    if state.age_s > state.limits.max_data_age_s:
        return _hold(state, CapacityReason.STALE_DATA, None)
    limits, correction = state.limits, state.memory.correction
    # What is there now is there, whatever was forecast.
    peak_rps = max(state.forecast.peak_rps(limits.chance), _is_there(state))
    needed_rps = peak_rps * (1 + limits.headroom) / correction
    wanted = cheapest(state.table, needed_rps, most_devices=limits.max_devices)
    if wanted is None:
        return _beyond(state, needed_rps)
    if _carries(state.current, needed_rps):
        return _maybe_down(state, needed_rps)
    if (overload_rps := _is_there(state) / correction - state.current.low_rps) > 0:
        wanted = _with_queue(state, wanted, needed_rps, overload_rps)
    return _maybe_up(state, wanted, needed_rps)


def _remember(state: CapacityState) -> CapacityState:
    """Forget changes older than an hour, and learn from the last window.

    A window that missed the SLA at a rate below what the table promises lowers the correction
    towards a little less than that rate; windows that meet it let it rise again. Neither counts
    while a change or an overload settles: the queue that it left is not the table's error.
    """
    memory, limits = state.memory, state.limits
    recent = tuple(at_s for at_s in memory.changes_s if state.now_s - at_s < HOUR_S)
    commanded = memory.commanded or state.current.settings.plan
    memory = replace(memory, changes_s=recent, commanded=commanded, decided_s=state.now_s)
    if state.request_size is not None:
        size = memory.request_size
        size += CORRECTION_ALPHA * (state.request_size - size)
        memory = replace(memory, request_size=size)
    if state.observed_rps is None or state.age_s > limits.max_data_age_s:
        return replace(state, memory=memory)
    admitted_rps = memory.request_size * (state.admitted_rps or math.inf)
    served_rps = min(state.observed_rps, admitted_rps)
    share = served_rps / state.current.low_rps
    is_limited = state.admitted_rps is not None
    if share > memory.correction * (1 + ABOUT if is_limited else 1):
        memory = replace(memory, overloaded_s=state.now_s)
    if _settles(memory.overloaded_s, state) or _settles(memory.changed_s, state):
        return replace(state, memory=memory)
    correction = memory.correction
    if state.is_sla_met is False:
        carried = max(share * BELOW_MISSED, LEAST_CORRECTION)
        correction += CORRECTION_ALPHA * (min(carried, correction) - correction)
    elif state.is_sla_met:
        correction += RECOVERY_ALPHA * (1.0 - correction)
    return replace(state, memory=replace(memory, correction=correction))


def _is_there(state: CapacityState) -> float:
    """What the last window brought, where it missed the SLA, or where luck alone would hardly bring
    it to what the entry in force carries; else what is surely behind it."""
    assert state.observed_rps is not None, "decided from an observation"
    if state.is_sla_met is False:
        return state.observed_rps
    luck = NormalDist().inv_cdf(max(state.limits.chance, 0.5)) * state.observed_luck
    surely_rps = state.observed_rps * max(1 - luck, 0.0)
    if surely_rps > state.current.low_rps * state.memory.correction:
        return state.observed_rps
    return surely_rps


def _with_queue(
    state: CapacityState, wanted: CarriedRate, needed_rps: float, overload_rps: float
) -> CarriedRate:
    """The entry that also works off, in ``CATCH_UP_S``, the queue that grows until it is ready; the
    largest there are devices for, where none does."""
    queue_rps = overload_rps * min(state.cost(wanted).ready_s / CATCH_UP_S, 1.0)
    most = state.limits.max_devices
    found = cheapest(state.table, needed_rps + queue_rps, most_devices=most)
    if found is None:
        fitting = [e for e in state.table.entries if most is None or e.num_devices <= most]
        found = fitting[-1]
    return found


def _settles(since_s: float | None, state: CapacityState) -> bool:
    return since_s is not None and state.now_s - since_s < state.limits.settle_s


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
            assert state.observed_rps is not None, "decided from an observation"
            overload = Overload(
                now_s=state.now_s,
                offered_rps=state.observed_rps / memory.request_size,
                carried_rps=_carried_rps(state, decision.entry) / memory.request_size,
                in_force_rps=in_force,
                has_no_way_out=decision.admit_rps is not None
                or decision.reason is CapacityReason.GUARD_PER_HOUR,
            )
            admission_rps, shedding = limit_admission(
                memory.shedding, overload, state.limits.shedding
            )
    return replace(decision, admission_rps=admission_rps, memory=replace(memory, shedding=shedding))


def _maybe_up(state: CapacityState, wanted: CarriedRate, needed_rps: float) -> CapacityDecision:
    """More capacity: at once, unless a guard forbids it or the change costs more than it gains."""
    state = replace(state, memory=replace(state.memory, lower_since_s=None))
    if (guard := _guard(state)) is not None:
        return _hold(state, guard, needed_rps)
    if not _is_worth_it(state, wanted):
        return _hold(state, CapacityReason.NOT_WORTH_IT, needed_rps)
    is_corrected = state.memory.correction < 1.0 and _carries(
        state.current, needed_rps * state.memory.correction
    )
    reason = CapacityReason.SLA_MISSED if is_corrected else CapacityReason.LOAD_UP
    return _move(state, wanted, reason, needed_rps)


def _is_worth_it(state: CapacityState, wanted: CarriedRate) -> bool:
    """Whether fewer requests miss with the change than without, over the forecast's horizon.

    Without it, all requests of a slot above what the current entry carries wait in a growing
    queue, and so miss. With it, those wait that come while ranks are away, and until the queue of
    these is worked off. A change that keeps ranks serving costs no request.
    """
    cost, forecast = state.cost(wanted), state.forecast
    assert forecast is not None, "decided from a forecast"
    if not cost.away_s:
        return True
    limit = state.current.low_rps * state.memory.correction
    rates = [float(rate) for rate in forecast.rates_rps]
    missed = sum(rate * forecast.slot_s for rate in rates if rate > limit)
    rate_rps = sum(rates) / len(rates)
    return missed > cost.missed_requests(rate_rps, wanted.low_rps * state.memory.correction)


def _maybe_down(state: CapacityState, needed_rps: float) -> CapacityDecision:
    """Fewer devices, once they would have done for the dwell time."""
    limits, memory = state.limits, state.memory
    roomy = cheapest(
        state.table,
        needed_rps,
        headroom=limits.down_headroom,
        most_devices=limits.max_devices,
    )
    if state.is_sla_met is False or roomy is None or not _is_less(roomy, state.current):
        calm = replace(state, memory=replace(memory, lower_since_s=None))
        return _hold(calm, CapacityReason.HOLDS, needed_rps)
    since_s = state.now_s if memory.lower_since_s is None else memory.lower_since_s
    state = replace(state, memory=replace(memory, lower_since_s=since_s))
    if state.now_s - since_s < _patience_s(state, roomy):
        return _hold(state, CapacityReason.DWELL, needed_rps)
    if (guard := _guard(state, kept=1)) is not None:
        return _hold(state, guard, needed_rps)
    if not _saves_enough(state, roomy):
        return _hold(state, CapacityReason.NOT_WORTH_IT, needed_rps)
    return _move(state, roomy, CapacityReason.LOAD_DOWN, needed_rps)


def _patience_s(state: CapacityState, entry: CarriedRate) -> float:
    """How long fewer devices must have done. A load that came back so far within some minutes is
    waited for: to give devices back and to start them again costs more than to keep them."""
    limits, forecast = state.limits, state.forecast
    assert forecast is not None, "decided from a forecast"
    level_rps = entry.low_rps * state.memory.correction
    returns_s = forecast.returns_s(level_rps, limits.chance, within_s=limits.longest_dwell_s)
    return min(max(limits.dwell_s, PATIENCE * returns_s), limits.longest_dwell_s)


def _is_less(entry: CarriedRate, current: CarriedRate) -> bool:
    return entry.num_devices < current.num_devices


def _saves_enough(state: CapacityState, wanted: CarriedRate) -> bool:
    """Whether the devices freed over another dwell time are worth more than those that the change
    itself keeps busy, and whether nobody has to wait for it: an SLA is not missed to save."""
    cost = state.cost(wanted)
    saved = (state.current.num_devices - wanted.num_devices) * state.limits.dwell_s
    spent = (state.current.num_devices + wanted.num_devices) * cost.ready_s
    return cost.away_s == 0 and saved > spent


def _guard(state: CapacityState, *, kept: int = 0) -> CapacityReason | None:
    """What forbids a change now; ``kept`` of the hour's changes are for later."""
    memory, limits = state.memory, state.limits
    if memory.changed_s is not None and state.now_s - memory.changed_s < limits.min_interval_s:
        return CapacityReason.GUARD_INTERVAL
    if len(memory.changes_s) >= max(limits.max_per_h - kept, 1):
        return CapacityReason.GUARD_PER_HOUR
    return None


def _move(
    state: CapacityState, entry: CarriedRate, reason: CapacityReason, needed_rps: float
) -> CapacityDecision:
    memory = replace(
        state.memory,
        changes_s=(*state.memory.changes_s, state.now_s),
        lower_since_s=None,
        commanded=entry.settings.plan,
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
