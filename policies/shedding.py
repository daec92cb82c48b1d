"""How many requests an engine should let in where more come than it can be made to carry.

Part of the slow loop: :func:`policies.capacity_loop.decide_capacity` knows what is carried and what
comes; here it is decided whether to turn requests away, and when to stop doing so. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

# Of those let in at the rate that is carried about this share meets the SLA.
MET_OF_CARRIED = 0.9
# A rate that is this close to the one in force is not worth a policy version.
SAME_RATE = 0.05


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
    """

    commanded_rps: float | None = None
    calm_since_s: float | None = None
    is_overruled: bool = False


@dataclass(frozen=True, kw_only=True)
class Overload:
    """What is known now: ``carried_rps`` within the SLA, ``offered_rps`` come, ``in_force_rps`` are
    let in at most (None: whatever comes). ``has_no_way_out``: more capacity cannot be had.

    ``met_rps`` meet the SLA although more come than are carried (None: unknown).
    """

    now_s: float
    offered_rps: float
    carried_rps: float
    in_force_rps: float | None
    has_no_way_out: bool = True
    met_rps: float | None = None

    @property
    def is_over(self) -> bool:
        return self.has_no_way_out and self.offered_rps > self.carried_rps

    @property
    def has_better(self) -> bool:
        """Whether more requests would meet the SLA if those above what is carried were turned
        away."""
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

    A limit follows what is carried, and stays until the load is well below it for a while: lifted
    at once, it would come and go with every gust. One that somebody else set is left as it is.
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
    if overload.offered_rps <= limits.calm_share * overload.carried_rps:
        since_s = memory.calm_since_s
        since_s = overload.now_s if since_s is None else since_s
        if overload.now_s - since_s >= limits.calm_s:
            return None, SheddingMemory()
        return ours, replace(memory, calm_since_s=since_s)
    carried = float(f"{overload.carried_rps:.4g}")
    if ours is None or abs(carried / ours - 1) > SAME_RATE:
        ours = carried
    return ours, SheddingMemory(commanded_rps=ours)


def lift(memory: SheddingMemory, in_force_rps: float | None) -> tuple[float | None, SheddingMemory]:
    """As :func:`limit_admission` where more is carried than comes, or another plan serves than
    this loop chose: its own limit goes, one of somebody else stays."""
    memory = hear(memory, in_force_rps)
    is_theirs = in_force_rps is not None and memory.commanded_rps is None
    return (in_force_rps if is_theirs else None), SheddingMemory()
