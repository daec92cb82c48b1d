"""How many requests an engine should let in where more come than it can be made to carry.

Part of the slow loop: :func:`policies.capacity_loop.decide_capacity` knows what is carried and what
comes; here it is decided whether to turn requests away, and when to stop doing so. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

# Of those let in at the rate that is carried about this share meets the SLA.
MET_OF_CARRIED = 0.9
# A rate that is this close to the one in force is not worth a policy version.
SAME_RATE = 0.05
# While nobody waits for long a limit grows by so much at every look, and is halved where somebody
# does (additive increase and multiplicative decrease, in steps of a share: Chiu and Jain 1989).
GROWTH = 1.25
CUT = 0.5


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

    ``commanded_rps``: the limit that this loop has set. ``calm_since_s``: since when less comes.
    ``is_overruled``: somebody else lifted it, so none is set again until the overload is over.
    ``good_rps``: the highest limit with which nobody waited for long before one with which somebody
    did, at ``troubled_s``.
    """

    commanded_rps: float | None = None
    calm_since_s: float | None = None
    is_overruled: bool = False
    good_rps: float | None = None
    troubled_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Overload:
    """What is known now: ``carried_rps`` within the SLA, ``offered_rps`` come, ``in_force_rps`` are
    let in at most (None: whatever comes). ``has_no_way_out``: more capacity cannot be had.

    ``met_rps`` meet the SLA although more come than are carried (None: unknown). ``finished_rps``
    end where as many may be let in (0: unknown). ``is_queue_long``: whether more wait than the SLA
    bears, and ``is_sla_met``: whether those let in met it (None: unknown).
    """

    now_s: float
    offered_rps: float
    carried_rps: float
    in_force_rps: float | None
    has_no_way_out: bool = True
    met_rps: float | None = None
    finished_rps: float = 0.0
    is_queue_long: bool | None = None
    is_sla_met: bool | None = None

    @property
    def is_over(self) -> bool:
        return self.has_no_way_out and self.offered_rps > self.carried_rps

    @property
    def least_rps(self) -> float:
        """What is carried; where a queue is worked off faster than that, nearly as much."""
        worked_off_rps = MET_OF_CARRIED * self.finished_rps if self.is_queue_long else 0.0
        return max(self.carried_rps, worked_off_rps)

    @property
    def has_better(self) -> bool:
        """Whether more requests would meet the SLA if those above what is carried were turned
        away. Where nothing is known yet and nobody waits for long there is no reason."""
        if self.met_rps is None and self.is_queue_long is False:
            return False
        is_well = self.met_rps is not None and self.met_rps >= MET_OF_CARRIED * self.carried_rps
        return self.is_over and not is_well


def hear(memory: SheddingMemory, in_force_rps: float | None) -> SheddingMemory:
    """What somebody else did about the limit since the last decision is theirs: a limit of their
    own stays as it is, and one that they lifted is not set again in this overload."""
    if in_force_rps == memory.commanded_rps:
        return memory
    return SheddingMemory(is_overruled=memory.is_overruled or in_force_rps is None)


def limit_admission(
    memory: SheddingMemory, overload: Overload, limits: SheddingLimits
) -> tuple[float | None, SheddingMemory]:
    """The most requests per second to let in from now on, where the engine cannot be made to carry
    more; None: whatever comes.

    A limit begins with what is carried. The table's rate is one that requests keep that come as
    they happen to; of those let in one by one more may be carried, and a gust is soon over: so the
    limit is probed upwards while nobody waits for long. It stays until the load is well below it
    for a while: lifted at once, it would come and go with every gust. One that somebody else set is
    left as it is.
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
    memory = _probe(memory, overload, limits)
    if overload.offered_rps <= limits.calm_share * (memory.commanded_rps or overload.carried_rps):
        since_s = memory.calm_since_s
        since_s = overload.now_s if since_s is None else since_s
        if overload.now_s - since_s >= limits.calm_s:
            return None, SheddingMemory()
        return memory.commanded_rps, replace(memory, calm_since_s=since_s)
    return memory.commanded_rps, replace(memory, calm_since_s=None)


def _probe(memory: SheddingMemory, overload: Overload, limits: SheddingLimits) -> SheddingMemory:
    """The next limit: what is carried, or what was found to do above it."""
    ours, least = memory.commanded_rps, overload.least_rps
    if ours is None:
        return replace(memory, commanded_rps=_rounded(least))
    if overload.is_queue_long or overload.is_sla_met is False:
        asked = max(CUT * ours, least)
        good_rps = max(ours / GROWTH, least)
        memory = replace(memory, good_rps=good_rps, troubled_s=overload.now_s)
    elif overload.is_queue_long is None:
        asked = least
    else:
        asked = max(min(GROWTH * ours, _most_rps(memory, overload, limits)), least)
    if abs(asked / ours - 1) <= SAME_RATE:
        return memory
    return replace(memory, commanded_rps=_rounded(asked))


def _most_rps(memory: SheddingMemory, overload: Overload, limits: SheddingLimits) -> float:
    """As far as the last trouble, for a while after it."""
    if memory.good_rps is None or memory.troubled_s is None:
        return math.inf
    return memory.good_rps if overload.now_s - memory.troubled_s < limits.calm_s else math.inf


def _rounded(rate_rps: float) -> float:
    return float(f"{rate_rps:.4g}")


def lift(memory: SheddingMemory, in_force_rps: float | None) -> tuple[float | None, SheddingMemory]:
    """As :func:`limit_admission` where more is carried than comes, or another plan serves than
    this loop chose: its own limit goes, one of somebody else stays."""
    memory = hear(memory, in_force_rps)
    is_theirs = in_force_rps is not None and memory.commanded_rps is None
    return (in_force_rps if is_theirs else None), SheddingMemory()
