"""How many requests a second an engine begins while a queue is felt: remembered, since what ended
in the last window is little where little came before a gust, or where all of it are prompts still.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

# Counts of so many busy seconds ago weigh 1/e of those of now: engines and lengths change.
BUSY_S = 60.0
# Of so few that began nothing is told.
LEAST_BEGUN = 20.0
# Between two looks no more time may have passed than the later one counts: the rest was not seen.
MOST_GAP = 1.5
# More waiting than the SLA bears in this share of its bound, and than luck explains in so many
# standard deviations, is a queue that is felt.
SETPOINT = 0.5
CHANCE = 2.0


@dataclass(frozen=True, kw_only=True)
class BusyRate:
    """What one look hands to the next.

    ``begun`` requests, of the table's mix, had their first step in ``seconds`` in which a queue was
    felt, both with older ones weighing less; of ranks of ``plan`` (as text). ``running`` ran when
    the last look came, at ``read_s``, and ``is_felt``: so many waited then.
    """

    plan: str = ""
    begun: float = 0.0
    seconds: float = 0.0
    running: float = 0.0
    is_felt: bool = False
    read_s: float | None = None

    def rps_of(self, plan: str) -> float:
        """Requests of the table's mix a second that ranks of ``plan`` begin while they have as many
        as they can take, one standard deviation of luck taken off; 0: unknown."""
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
    """Take in a look at ``seconds`` in which ``ended`` requests ended, with ``running`` and
    ``is_felt`` as they are at its end, and requests as long as ``request_size`` of the table's.

    What ends and what then runs more have begun. That counts where a queue was felt before and
    after: nearly all of the time between no row that could be had stood empty. With a queue at one
    end only it is the least that can begin, and counts if it is more than was known: a door that
    shuts at a gust would learn nothing else.
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
