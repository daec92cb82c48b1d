"""The fast loop: pick the load band of the tuner's schedule, correct it by observation.

``decide`` is pure: the caller brings the time and the observations and keeps the memory.
"""

from __future__ import annotations

import math
from dataclasses import replace

from policies.decision import (
    Action,
    BandRejection,
    BeyondBand,
    ControlLimits,
    ControlMemory,
    ControlState,
    Decision,
    LoadWindow,
    OnDrift,
    Reason,
    RejectedBand,
    SmoothedLoad,
)
from policies.load_history import luck_of, margin_of, surely
from policies.schedule import Schedule

__all__ = [
    "Action",
    "ControlLimits",
    "ControlMemory",
    "ControlState",
    "Decision",
    "LoadWindow",
    "OnDrift",
    "Reason",
    "RejectedBand",
    "BandRejection",
    "decide",
]


def decide(state: ControlState) -> Decision:
    """One turn of the fast loop.

    Missing or stale data holds everything as it is. After the cool-down, a load that is beyond its
    band's edge by the dead band, and by more than luck explains, moves to the band it belongs to.
    Windows that miss the SLA move to the settings of the next higher load; that correction stays
    until the load changes band, so a constant load cannot make it swing. An SLA that nothing can
    meet raises a condition.
    """
    load = state.load
    if load is None:
        return _hold(state, Reason.NO_DATA, BandRejection.NO_FRESH_DATA)
    if load.age_s > state.limits.max_data_age_s:
        return _hold(state, Reason.STALE_DATA, BandRejection.NO_FRESH_DATA)
    if _has_drifted(state):
        return _on_drift(state)
    smoothed = _smooth(state.memory.smoothed, load, state.limits.ema_alpha)
    state = replace(state, memory=replace(state.memory, smoothed=smoothed))
    target = _find_band(state.schedule, smoothed)
    if state.memory.load_band is None:
        return _move(state, target, Reason.FIRST_OBSERVATION)
    if target != state.memory.load_band:
        return _follow_load(state, load, smoothed, target)
    return _correct(_within(state), load)


def _has_drifted(state: ControlState) -> bool:
    memory = state.memory
    if state.in_force is None or memory.commanded is None:
        return False
    return _has_settled(state) and not memory.commanded.is_hot_as(state.in_force)


def _has_settled(state: ControlState) -> bool:
    """Whether the last change has had time to show."""
    changed_s = state.memory.changed_s
    return changed_s is None or state.now_s - changed_s >= state.limits.settle_s


def _on_drift(state: ControlState) -> Decision:
    match state.limits.on_drift:
        case OnDrift.PAUSE:
            decision = _hold(state, Reason.DRIFT_PAUSED, BandRejection.DRIFT)
            return replace(decision, settings=state.in_force)
        case OnDrift.ADOPT:
            memory = replace(state.memory, commanded=state.in_force)
            return _hold(replace(state, memory=memory), Reason.DRIFT_ADOPTED, BandRejection.DRIFT)
        case OnDrift.REVERT:
            decision = _hold(state, Reason.DRIFT_REVERTED, BandRejection.DRIFT)
            memory = replace(state.memory, changed_s=state.now_s)
            return replace(decision, action=Action.MOVE, memory=memory)


def _smooth(before: SmoothedLoad | None, load: LoadWindow, alpha: float) -> SmoothedLoad:
    def average(old: float | None, new: float | None) -> float | None:
        if old is None or new is None:
            return old if new is None else new
        return old + alpha * (new - old)

    if before is None:
        before = SmoothedLoad(
            rate_rps=load.rate_rps, mean_input_tokens=None, mean_output_tokens=None
        )
    return SmoothedLoad(
        rate_rps=before.rate_rps + alpha * (load.rate_rps - before.rate_rps),
        mean_input_tokens=average(before.mean_input_tokens, load.mean_input_tokens),
        mean_output_tokens=average(before.mean_output_tokens, load.mean_output_tokens),
    )


def _find_band(schedule: Schedule, load: SmoothedLoad) -> int:
    mix = nearest_mix(schedule, load)
    return schedule.find_band(equivalent_rate(load, mix), *mix)


def nearest_mix(schedule: Schedule, load: SmoothedLoad) -> tuple[float, float]:
    if load.mean_input_tokens is None or load.mean_output_tokens is None:
        return schedule.bands[0].mix
    return schedule.nearest_mix(max(load.mean_input_tokens, 1.0), max(load.mean_output_tokens, 1.0))


def equivalent_rate(load: SmoothedLoad, mix: tuple[float, float]) -> float:
    """The rate of requests of ``mix`` that brings as many tokens per second as this load."""
    if load.mean_input_tokens is None or load.mean_output_tokens is None:
        return load.rate_rps
    return load.rate_rps * (load.mean_input_tokens + load.mean_output_tokens) / sum(mix)


def _follow_load(
    state: ControlState, window: LoadWindow, load: SmoothedLoad, target: int
) -> Decision:
    """The load belongs to another band; go there unless dead band, luck or cool-down forbid it.

    Settings for less load are never chosen on a window that missed the SLA.
    """
    limits, memory, bands = state.limits, state.memory, state.schedule.bands
    assert memory.load_band is not None, "the first observation sets the load band"
    current = bands[memory.load_band]
    rate = equivalent_rate(load, current.mix)
    if bands[target].mix != current.mix:
        reason, wait_s = Reason.MIX_CHANGED, limits.cool_down_up_s
        state = _within(state)
        is_dead = _mix_gain(load, current.mix, bands[target].mix) < math.log1p(limits.dead_band)
    elif bands[target].rate_rps_low >= current.rate_rps_high:
        reason, wait_s = Reason.LOAD_UP, limits.cool_down_up_s
        edge_rps = current.rate_rps_high
        if rate >= edge_rps * (1 + limits.dead_band):
            state, for_s = _beyond(state, window, is_above=True)
            is_dead = not _is_surely_above(state, window, rate, edge_rps, for_s)
        else:
            state, is_dead = _within(state), True
    elif _judged(window, limits) is False:
        return _correct(_within(state), window)
    else:
        reason, wait_s = Reason.LOAD_DOWN, limits.cool_down_down_s
        edge_rps = current.rate_rps_low * (1 - limits.dead_band)
        if rate <= edge_rps:
            state, for_s = _beyond(state, window, is_above=False)
            luck = luck_of(edge_rps * for_s)
            # The nearer to the edge, the longer it takes.
            is_dead = rate >= surely(edge_rps, luck, limits.chance_down)
        else:
            state, is_dead = _within(state), True
    is_cooling = memory.changed_s is not None and state.now_s - memory.changed_s < wait_s
    if not is_dead and not is_cooling:
        return _move(state, target, reason)
    state = _count_misses(state, window)
    if state.memory.misses >= limits.misses_to_correct:
        return _answer_misses(state)
    if is_dead:
        return _hold(state, Reason.DEAD_BAND, BandRejection.DEAD_BAND, target)
    return _hold(state, Reason.COOL_DOWN, BandRejection.COOL_DOWN, target)


def _within(state: ControlState) -> ControlState:
    """The load is not beyond its band and the dead band."""
    return replace(state, memory=replace(state.memory, beyond=None))


def _beyond(
    state: ControlState, window: LoadWindow, *, is_above: bool
) -> tuple[ControlState, float]:
    """The load is beyond its band, and for how many seconds it has been: time that was not watched
    is no evidence, so after a longer gap than data may be old it counts anew."""
    now_s, before = state.now_s, state.memory.beyond
    since_s = now_s
    if before is not None and before.is_above is is_above:
        gap_s = now_s - before.seen_s - window.window_s
        since_s = before.since_s if gap_s <= state.limits.max_data_age_s else now_s
    beyond = BeyondBand(is_above=is_above, since_s=since_s, seen_s=now_s)
    return replace(state, memory=replace(state.memory, beyond=beyond)), now_s - since_s


def _is_surely_above(
    state: ControlState, window: LoadWindow, rate_rps: float, edge_rps: float, for_s: float
) -> bool:
    """Whether luck would hardly make so much of a load at the edge, in a window and for as long as
    it has been so. What missed the SLA was there, luck or not."""
    if _judged(window, state.limits) is False:
        return True
    luck = luck_of(edge_rps * (window.window_s + for_s))
    return rate_rps >= edge_rps * (1 + margin_of(luck, state.limits.chance_up))


def _mix_gain(
    load: SmoothedLoad, current: tuple[float, float], target: tuple[float, float]
) -> float:
    """How much closer the observed lengths are to ``target`` than to ``current``, in logs."""
    observed = (load.mean_input_tokens, load.mean_output_tokens)

    def distance(mix: tuple[float, float]) -> float:
        return sum(abs(math.log(m / max(o, 1.0))) for m, o in zip(mix, observed, strict=True) if o)

    return distance(current) - distance(target)


def _correct(state: ControlState, load: LoadWindow) -> Decision:
    """The load has not changed band: hold, or answer windows that missed the SLA."""
    state = _count_misses(state, load)
    if state.memory.misses < state.limits.misses_to_correct:
        return _hold_in_band(state)
    return _answer_misses(state)


def _count_misses(state: ControlState, load: LoadWindow) -> ControlState:
    """A window judges these settings only once all its requests were served under them."""
    is_met = _judged(load, state.limits)
    if is_met is None or not _has_settled(state):
        return state
    misses = 0 if is_met else state.memory.misses + 1
    return replace(state, memory=replace(state.memory, misses=misses))


def _answer_misses(state: ControlState) -> Decision:
    """The settings of the next higher load, or what stands against them."""
    if state.is_feasible_when_idle is False and _asks_no_less(state):
        return _raise(state, Reason.SLA_INFEASIBLE)
    higher = _next_higher(state)
    if higher is None:
        return _raise(state, Reason.SLA_MISSED_AT_TOP)
    assert state.memory.load_band is not None, "the first observation sets the load band"
    return _move(state, higher, Reason.SLA_MISSED, load_band=state.memory.load_band)


def _asks_no_less(state: ControlState) -> bool:
    """Whether requests are as long as those of the schedule: shorter ones may be fast enough."""
    smoothed, index = state.memory.smoothed, state.memory.load_band
    assert smoothed is not None, "the caller has smoothed the load"
    assert index is not None, "the first observation sets the load band"
    observed = (smoothed.mean_input_tokens, smoothed.mean_output_tokens)
    least = 1 - state.limits.dead_band
    return all(
        o is not None and o >= m * least
        for o, m in zip(observed, state.schedule.bands[index].mix, strict=True)
    )


def _judged(load: LoadWindow, limits: ControlLimits) -> bool | None:
    """Whether the window met the SLA; None when it has too few requests to tell."""
    return load.is_sla_met if load.num_requests >= limits.min_requests else None


def _hold_in_band(state: ControlState) -> Decision:
    memory = state.memory
    assert memory.load_band is not None, "the first observation sets the load band"
    assert memory.smoothed is not None, "the caller has smoothed the load"
    band = state.schedule.bands[memory.load_band]
    if equivalent_rate(memory.smoothed, band.mix) >= band.rate_rps_high:
        return _raise(state, Reason.BEYOND_SCHEDULE)
    return _hold(state, Reason.IN_BAND)


def _next_higher(state: ControlState) -> int | None:
    """The next band up in the same mix whose settings differ from those commanded."""
    index = state.memory.band_index
    assert index is not None, "the first observation sets the band"
    group = state.schedule.group(state.schedule.bands[index].mix)
    commanded = state.memory.commanded
    for above in group[group.index(index) + 1 :]:
        settings = state.schedule.bands[above].settings
        if commanded is None or not settings.is_hot_as(commanded):
            return above
    return None


def _move(
    state: ControlState, index: int, reason: Reason, *, load_band: int | None = None
) -> Decision:
    """Put band ``index`` in force; that is no change if its settings are in force already."""
    settings = state.schedule.bands[index].settings
    commanded = state.memory.commanded
    is_change = commanded is None or not settings.is_hot_as(commanded)
    memory = replace(
        state.memory,
        load_band=index if load_band is None else load_band,
        band_index=index,
        commanded=settings,
        changed_s=state.now_s if is_change else state.memory.changed_s,
        misses=0,
        beyond=None,
    )
    return Decision(
        action=Action.MOVE if is_change else Action.HOLD,
        reason=reason,
        settings=settings,
        band_index=index,
        rejected=_rejected(state.schedule, index, memory, reason),
        memory=memory,
    )


def _hold(
    state: ControlState, reason: Reason, why: BandRejection | None = None, target: int | None = None
) -> Decision:
    """Stay. ``why`` rejects band ``target``, or every other band when there is no target."""
    memory = state.memory
    rejected = _rejected(state.schedule, memory.band_index, memory, reason)
    if why is not None:
        rejected = tuple(
            RejectedBand(band_index=r.band_index, why=why) if target in (None, r.band_index) else r
            for r in rejected
        )
    return Decision(
        action=Action.HOLD,
        reason=reason,
        settings=memory.commanded,
        band_index=memory.band_index,
        rejected=rejected,
        memory=memory,
    )


def _raise(state: ControlState, reason: Reason) -> Decision:
    return replace(_hold(state, reason), action=Action.RAISE_CONDITION)


def _rejected(
    schedule: Schedule, chosen: int | None, memory: ControlMemory, reason: Reason
) -> tuple[RejectedBand, ...]:
    """Why each band but the chosen one was left: by mix, by load, or because it missed the SLA."""
    load = memory.smoothed
    rejected = []
    for index, band in enumerate(schedule.bands):
        if index == chosen:
            continue
        if load is None:
            why = BandRejection.NO_FRESH_DATA
        elif band.mix != nearest_mix(schedule, load):
            why = BandRejection.OTHER_MIX
        elif reason is Reason.SLA_MISSED and index == memory.load_band:
            why = BandRejection.SLA_MISSED
        elif equivalent_rate(load, band.mix) >= band.rate_rps_high:
            why = BandRejection.LOAD_IS_HIGHER
        else:
            why = BandRejection.LOAD_IS_LOWER
        rejected.append(RejectedBand(band_index=index, why=why))
    return tuple(rejected)
