"""How many requests a second an engine begins while a queue is felt.

The last window alone does not tell: at the start of a gust few requests have ended in it, since few
came before, or since all that run are still at their prompts. So it is remembered over windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

# What was counted so many busy seconds ago weighs 1/e, because engines and lengths change.
BUSY_S = 60.0
# No rate is told from fewer requests than this.
LEAST_BEGUN = 20.0
# Two looks further apart than this many windows leave a gap that neither has seen.
MOST_GAP = 1.5
# A queue is felt when more wait than the SLA bears in this share of its bound, and more than luck
# explains in so many standard deviations.
SETPOINT = 0.5
CHANCE = 2.0


@dataclass(frozen=True, kw_only=True)
class BusyRate:
    """What one look hands to the next.

    Ranks of ``plan`` (as text) began ``begun`` requests of the table's mix in ``seconds`` in which
    a queue was felt; older ones weigh less in both. At the last look, at ``read_s``, ``running``
    requests ran, and ``is_felt`` says whether a queue was felt.
    """

    plan: str = ""
    begun: float = 0.0
    seconds: float = 0.0
    running: float = 0.0
    is_felt: bool = False
    read_s: float | None = None

    def rps_of(self, plan: str) -> float:
        """Requests of the table's mix that busy ranks of ``plan`` begin a second, less one standard
        deviation of luck; 0: unknown."""
        if plan != self.plan or self.begun < LEAST_BEGUN:
            return 0.0
        return self.begun / self.seconds * (1 - 1 / math.sqrt(self.begun))


def felt_from(borne: float) -> float:
    """How many may wait, where the SLA bears ``borne``, before a queue is felt: half of that, or
    what chance explains of a line that is short."""
    return max(SETPOINT * borne, min(CHANCE * math.sqrt(borne), borne))


def watch_busy(
    memory: BusyRate,
    *,
    plan: str,
    now_s: float,
    seconds: float,
    ended: float,
    running: float,
    is_felt: bool,
    request_size: float,
) -> BusyRate:
    """Take in a look at ``seconds`` in which ``ended`` requests ended; ``running`` and ``is_felt``
    are as at its end. A request is as much work as ``request_size`` of the table's.

    Those that began are those that ended and those by which more run than before. Where a queue was
    felt at both ends of the look, ranks were full nearly all the time between, so that this is what
    they can begin. With a queue at one end only they may begin more, so it counts only where it is
    above what was known: an engine that admits no queue would learn nothing otherwise.
    """
    before = memory if memory.plan == plan else BusyRate(plan=plan)
    after = replace(before, running=running, is_felt=is_felt, read_s=now_s)
    if not (before.is_felt or is_felt) or before.read_s is None:
        return after
    if now_s - before.read_s > MOST_GAP * seconds:
        return after
    begun = max(ended + running - before.running, 0.0) * request_size
    is_all = before.is_felt and is_felt
    if not is_all and begun * before.seconds <= before.begun * seconds and before.seconds:
        return after
    kept = math.exp(-seconds / BUSY_S)
    return replace(
        after, begun=kept * before.begun + begun, seconds=kept * before.seconds + seconds
    )
