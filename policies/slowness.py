"""Two unknowns of a run, in standard errors: how much slower than their model says steps with
prompts are, and how much slower steps of decodes.

Published runs show that they have little to do with each other. So two constraints that bind for
different reasons are less likely to be met together than either alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import NormalDist, fmean

# The first unknown is looked at in the middles of this many equal shares.
NUM_PARTS = 32
# A part nearer to the whole than this counts as the whole.
NEARLY = 1e-6


@dataclass(frozen=True, kw_only=True)
class Limit:
    """Met where ``share`` of the slowness of steps with prompts and the rest of that of decodes
    stay below ``room``."""

    room: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How far both unknowns scatter, in the standard errors that rooms are told in."""

    prompts: float = 1.0
    decodes: float = 1.0

    def of(self, limit: Limit) -> Limit:
        """The same limit of unknowns that scatter by 1."""
        prompts, decodes = limit.share * self.prompts, (1 - limit.share) * self.decodes
        whole = prompts + decodes
        if whole == 0:
            return replace(limit, room=math.copysign(math.inf, limit.room))
        return Limit(room=limit.room / whole, share=prompts / whole)


def chance_by(limits: Sequence[Limit], correlation: float, spreads: Sequence[Spread]) -> float:
    """The chance that all ``limits`` are met, where each of ``spreads`` is as likely."""
    return fmean(
        chance_within([spread.of(limit) for limit in limits], correlation) for spread in spreads
    )


def chance_within(limits: Sequence[Limit], correlation: float) -> float:
    """The chance that all ``limits`` are met, both unknowns being standard normal.

    With a correlation of 1 they are one, and the least room decides. Never higher where a room is
    less: shares of the first unknown stay where they are, whatever the rooms.
    """
    if not limits:
        return 1.0
    if correlation >= 1 - NEARLY:
        return _normal(min(limit.room for limit in limits))
    rest = math.sqrt(1 - correlation**2)
    whole = [limit.room for limit in limits if limit.share > 1 - NEARLY]
    mixed = [limit for limit in limits if limit.share <= 1 - NEARLY]
    # Limits that only steps with prompts decide are exact.
    upper = _normal(min(whole)) if whole else 1.0
    found = 0.0
    for part, prompts in enumerate(_middles()):
        held = min(upper, (part + 1) / NUM_PARTS) - part / NUM_PARTS
        if held <= 0:
            break
        decodes = min(
            ((limit.room - limit.share * prompts) / (1 - limit.share) for limit in mixed),
            default=math.inf,
        )
        found += held * _normal((decodes - correlation * prompts) / rest)
    return found


@cache
def _middles() -> tuple[float, ...]:
    normal = NormalDist()
    return tuple(normal.inv_cdf((part + 0.5) / NUM_PARTS) for part in range(NUM_PARTS))


def _normal(value: float) -> float:
    return 0.5 * math.erfc(-value / math.sqrt(2))
