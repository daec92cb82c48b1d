"""What waiting in shared memory has in common: how long to spin, and what went wrong."""

from __future__ import annotations

from enum import IntEnum

from engine.parallel.shm_layout import GroupSpec, Segment
from engine.spec.errors import RankError
from engine.spec.processor import num_cores

# About 5 us of spinning where every rank has a core of its own. Yielding an idle core costs less
# than a microsecond. A longer spin on a busy core holds up the very peer it waits for: on a loaded
# machine 2,000 polls were slower than 200. With fewer cores than ranks it spins even less.
SPINS_WITH_OWN_CORE = 200
SPINS_WITH_SHARED_CORE = 20


class Failure(IntEnum):
    """Why a collective failed; the numbers of ``Status`` in shm_collectives.cpp."""

    TIMEOUT = 1
    ABORTED = 2
    MISMATCH = 3


def spins_for(num_ranks: int) -> int:
    """Polls before yielding the core, for ``num_ranks`` ranks on this host."""
    return SPINS_WITH_OWN_CORE if num_ranks <= num_cores() else SPINS_WITH_SHARED_CORE


class GroupTrouble:
    """Turns a failure code into a RankError that names the group and the rank at fault."""

    def __init__(self, spec: GroupSpec, segment: Segment, timeout_s: float) -> None:
        self._spec = spec
        self._segment = segment
        self._timeout_s = timeout_s

    def error(self, failure: Failure, who: int) -> RankError:
        """``who`` is a member's position, or for ABORTED the blamed global rank plus one.

        A failed group is out of step for good, so all others on this host are told to stop too.
        """
        group = f"group {self._spec.name!r} of ranks {list(self._spec.members)}"
        if failure is Failure.ABORTED:
            return RankError(f"{group}: rank {who - 1} is gone or failed")
        rank = self._spec.members[who]
        self._segment.abort(rank)
        if failure is Failure.TIMEOUT:
            return RankError(f"{group}: rank {rank} did not arrive within {self._timeout_s:g} s")
        return RankError(f"{group}: rank {rank} called another collective, or with other bytes")
