"""How many requests an engine should let in where more come than it can be made to carry.

Part of the slow loop: :func:`policies.capacity_loop.decide_capacity` knows what is carried and what
comes; here it is decided whether to turn requests away, and when to stop doing so. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from policies.busy_rate import SETPOINT, felt_from

# Of those let in at the rate that is carried about this share meets the SLA.
MET_OF_CARRIED = 0.9
# Where the SLA bears few waiting, less than that can be let in of what ends: half at least, since
# with rows free an engine does not take in one after the other.
LEAST_ROOM = 0.5
ROOM_HALVINGS = 12
# A rate that is this close to the one in force is not worth a policy version.
SAME_RATE = 0.05
# While nobody waits for long a limit grows by so much at every look, and is halved where somebody
# does (additive increase and multiplicative decrease, in steps of a share: Chiu and Jain 1989).
# Once somebody did, what is known to do is left in small steps, just above what is worth a version.
GROWTH = 1.25
PROBE = 1.06
CUT = 0.5
# A step that failed again is waited for twice as long, up to so many times ``calm_s``: somebody
# misses each time.
MOST_HOLDS = 4
# What waits beyond a set point (half of what the SLA bears) is worked off in so long (proportional
# control of the queue's length): two looks, so that one look's delay does not make it swing.
DRAIN_S = 20.0
# Rates at which queues are worked off are smoothed: windows overlap, and hold few requests.
WORKED_ALPHA = 0.3
# Of those that would be let in if nobody waited so many come in whatever waits.
LEAST_SHARE = 0.05


@dataclass(frozen=True, kw_only=True)
class SheddingLimits:
    """When to turn requests away.

    ``is_allowed``: the operator does not forbid it, and the engine can. The limit is lifted once no
    more than ``calm_share`` of it has come for ``calm_s`` without a break.
    """

    is_allowed: bool = True
    calm_share: float = 0.9
    calm_s: float = 120.0


@dataclass(frozen=True, kw_only=True)
class SheddingMemory:
    """What one decision hands to the next.

    ``commanded_rps``: the limit that this loop has set, and ``level_rps`` what it would be if
    nobody waited (None: no limit). ``calm_since_s``: since when less comes. ``is_overruled``:
    somebody else lifted it, so none is set again until the overload is over. ``good_rps``: the
    highest level with which nobody waited for long before one with which somebody did, last at
    ``troubled_s``; ``is_troubled``: somebody still does. For ``hold_s`` after that nothing more is
    tried (at least for the limits' ``calm_s``). ``worked_rps``: what ended while a queue
    stood, smoothed; no more is carried (None: none stood for long enough).
    """

    commanded_rps: float | None = None
    level_rps: float | None = None
    calm_since_s: float | None = None
    is_overruled: bool = False
    good_rps: float | None = None
    troubled_s: float | None = None
    is_troubled: bool = False
    hold_s: float = 0.0
    worked_rps: float | None = None


@dataclass(frozen=True, kw_only=True)
class Overload:
    """What is known now: ``carried_rps`` within the SLA, ``offered_rps`` come, ``in_force_rps`` are
    let in at most (None: whatever comes). ``has_no_way_out``: more capacity cannot be had.

    ``met_rps`` meet the SLA although more come than are carried (None: unknown). ``finished_rps``
    end (0: unknown), and ``busy_rps`` began when a queue was felt, in this gust or in earlier ones
    (0: unknown); ``is_finish_enough``: no bound on tokens keeps an engine from taking in as many.
    ``waiting`` requests wait, of ``borne`` that the SLA bears; ``is_queue_long``: whether
    more than that (None: unknown), and ``is_queue_standing``: for so long that all that ended was
    worked off a queue. ``is_sla_met``: whether those let in met it (None: unknown), and
    ``may_miss`` the share of them that need not.
    """

    now_s: float
    offered_rps: float
    carried_rps: float
    in_force_rps: float | None
    has_no_way_out: bool = True
    met_rps: float | None = None
    finished_rps: float = 0.0
    busy_rps: float = 0.0
    is_finish_enough: bool = True
    waiting: float = 0.0
    borne: float = math.inf
    is_queue_long: bool | None = None
    is_queue_standing: bool = False
    is_sla_met: bool | None = None
    may_miss: float = 0.1

    @property
    def is_over(self) -> bool:
        return self.has_no_way_out and self.offered_rps > self.carried_rps

    @property
    def excess(self) -> float:
        """Requests that wait beyond the set point."""
        return max(0.0, self.waiting - SETPOINT * self.borne)

    @property
    def is_queue_felt(self) -> bool:
        """Whether more wait than the set point and chance explain."""
        return self.waiting > felt_from(self.borne)

    def least_rps(self, worked_rps: float | None) -> float:
        """The level to begin with: what is carried, or as much as there is room for of what is
        worked off a queue, or was, where that is more; no more than that of ``worked_rps``, all
        that ended once (None: unknown), whatever the table says."""
        finished_rps = self.finished_rps if self.is_queue_long else 0.0
        known_rps = max(finished_rps, self.busy_rps) if self.is_finish_enough else 0.0
        room = room_of(self.borne, self.may_miss)
        least_rps = max(self.carried_rps, room * known_rps)
        return least_rps if worked_rps is None else min(least_rps, room * worked_rps)

    @property
    def has_better(self) -> bool:
        """Whether more requests would meet the SLA if those above what would be let in were turned
        away. Where nothing is known yet and nobody waits for long there is no reason."""
        if self.met_rps is None and self.is_queue_long is False:
            return False
        is_well = self.met_rps is not None and self.met_rps >= MET_OF_CARRIED * self.least_rps(None)
        return self.is_over and (self.is_flooded or not is_well)

    @property
    def is_flooded(self) -> bool:
        """Whether more wait than could be worked off in time if nobody came: whatever was seen of
        those that ended, who comes now will miss."""
        return self.excess > DRAIN_S * max(self.carried_rps, self.finished_rps, self.busy_rps)


def room_of(borne: float, may_miss: float) -> float:
    """The share of what ends that can be let in so that no more than ``may_miss`` of it finds more
    than ``borne`` waiting: ``MET_OF_CARRIED`` at most, and less where luck alone fills a line that
    is short.

    Of a load r about r * exp(-2 * (1 - r) * borne) do, where requests take as long as they happen
    to (exponentially), and come at equal gaps, as a door lets them in that turns others away
    (Kingman 1961, in heavy traffic).
    """
    low, high = LEAST_ROOM, MET_OF_CARRIED
    if high * math.exp(-2 * (1 - high) * borne) <= may_miss:
        return high
    for _ in range(ROOM_HALVINGS):
        load = (low + high) / 2
        is_enough = load * math.exp(-2 * (1 - load) * borne) <= may_miss
        low, high = (load, high) if is_enough else (low, load)
    return low


def hear(memory: SheddingMemory, in_force_rps: float | None) -> SheddingMemory:
    """What somebody else did about the limit since the last decision is theirs: a limit of their
    own stays as it is, and one that they lifted is not set again in this overload."""
    if in_force_rps == memory.commanded_rps:
        return memory
    return SheddingMemory(is_overruled=memory.is_overruled or in_force_rps is None)


def begin_anew(memory: SheddingMemory) -> SheddingMemory:
    """Forget what was learned of another plan than the one that is to serve."""
    return SheddingMemory(commanded_rps=memory.commanded_rps, is_overruled=memory.is_overruled)


def limit_admission(
    memory: SheddingMemory, overload: Overload, limits: SheddingLimits
) -> tuple[float | None, SheddingMemory]:
    """The most requests per second to let in from now on, where the engine cannot be made to carry
    more; None: whatever comes.

    Its level begins with what is carried. The table's rate is one that requests keep that come as
    they happen to; of those let in one by one more may be carried, and a gust is soon over: so the
    level is probed upwards while nobody waits for long. Less than what is finished comes in while a
    queue is long, by as much as works it off in ``DRAIN_S``: at the finish rate a queue that is
    there stays for ever, and everybody who is let in waits for all of it. Where a queue stands
    although, the table promises too much, and the level is what was seen to be finished. A limit
    stays until the load is well below its level for a while: lifted at once, it would come and go
    with every gust. One that somebody else set is left as it is.
    """
    memory = hear(memory, overload.in_force_rps)
    ours, in_force = memory.commanded_rps, overload.in_force_rps
    if in_force is not None and ours is None:
        return in_force, memory
    if not limits.is_allowed:
        return None, SheddingMemory(is_overruled=memory.is_overruled)
    if memory.is_overruled:
        return None, replace(memory, is_overruled=overload.is_over)
    if ours is None and not overload.has_better:
        return None, SheddingMemory()
    memory = _drained(_probe(memory, overload, limits), overload)
    level_rps = memory.level_rps or overload.carried_rps
    if not overload.excess and overload.offered_rps <= limits.calm_share * level_rps:
        since_s = memory.calm_since_s
        since_s = overload.now_s if since_s is None else since_s
        if overload.now_s - since_s >= limits.calm_s:
            return None, SheddingMemory()
        return memory.commanded_rps, replace(memory, calm_since_s=since_s)
    return memory.commanded_rps, replace(memory, calm_since_s=None)


def _probe(memory: SheddingMemory, overload: Overload, limits: SheddingLimits) -> SheddingMemory:
    """The next level: what is carried, or what was found to do instead."""
    memory = replace(memory, worked_rps=_worked_rps(memory, overload))
    least, level = overload.least_rps(memory.worked_rps), memory.level_rps
    is_bad = overload.is_queue_long or overload.is_sla_met is False
    if level is None:
        return replace(memory, level_rps=least, is_troubled=bool(overload.is_queue_long))
    if not is_bad and overload.is_queue_long is None:
        return replace(memory, level_rps=least)
    if is_bad or overload.is_queue_felt or (memory.is_troubled and overload.excess):
        if not memory.is_troubled:
            memory = _step_back(memory, overload, limits)
        good = least if is_bad and overload.is_queue_standing else memory.good_rps
        level = CUT * level if is_bad else min(level, good or level)
        return replace(
            memory,
            level_rps=max(level, least),
            good_rps=None if good is None else max(good, least),
            troubled_s=overload.now_s,
            is_troubled=True,
        )
    # A level that nothing comes up to says nothing; it goes no further than where it is lifted.
    most = max(PROBE * overload.offered_rps / limits.calm_share, level)
    level = max(min(_grown(memory, overload, limits, level), most), least)
    return replace(memory, level_rps=level, is_troubled=False)


def _worked_rps(memory: SheddingMemory, overload: Overload) -> float | None:
    before_rps = memory.worked_rps
    if not overload.is_queue_standing:
        return before_rps
    if before_rps is None:
        return overload.finished_rps
    return before_rps + WORKED_ALPHA * (overload.finished_rps - before_rps)


def _step_back(
    memory: SheddingMemory, overload: Overload, limits: SheddingLimits
) -> SheddingMemory:
    """Where trouble begins: what was let in one step before it is known to do."""
    before, level = memory.good_rps, memory.level_rps
    assert level is not None, "there is a limit"
    good = min(level, overload.offered_rps) / (GROWTH if before is None else PROBE)
    hold_s = 0.0
    if before is not None and good <= PROBE * before:
        hold_s = min(2 * max(memory.hold_s, limits.calm_s), MOST_HOLDS * limits.calm_s)
    return replace(memory, good_rps=good, hold_s=hold_s)


def _grown(
    memory: SheddingMemory, overload: Overload, limits: SheddingLimits, level: float
) -> float:
    """At once as far as is known to do, and further only some time after the last trouble."""
    good, troubled_s = memory.good_rps, memory.troubled_s
    if overload.excess:
        return level
    if good is None or troubled_s is None:
        return GROWTH * level
    if level < good:
        return min(GROWTH * level, good)
    held_s = overload.now_s - troubled_s
    return PROBE * level if held_s >= max(limits.calm_s, memory.hold_s) else level


def _drained(memory: SheddingMemory, overload: Overload) -> SheddingMemory:
    """With the limit that the level and the queue ask for, if that is worth a version."""
    level, ours = memory.level_rps, memory.commanded_rps
    assert level is not None, "a level was found"
    asked = max(level - overload.excess / DRAIN_S, LEAST_SHARE * level)
    if ours is not None and abs(asked / ours - 1) <= SAME_RATE:
        return memory
    return replace(memory, commanded_rps=_rounded(asked))


def _rounded(rate_rps: float) -> float:
    return float(f"{rate_rps:.4g}")


def lift(memory: SheddingMemory, in_force_rps: float | None) -> tuple[float | None, SheddingMemory]:
    """As :func:`limit_admission` where more is carried than comes, or another plan serves than
    this loop chose: its own limit goes, one of somebody else stays."""
    memory = hear(memory, in_force_rps)
    is_theirs = in_force_rps is not None and memory.commanded_rps is None
    return (in_force_rps if is_theirs else None), SheddingMemory()
