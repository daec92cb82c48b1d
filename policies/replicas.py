"""How many engines like this one the load needs. It only tells; nothing here adds capacity."""

from __future__ import annotations

import math
from collections.abc import Iterable

from policies.controller import equivalent_rate, nearest_mix
from policies.decision import SmoothedLoad
from policies.schedule import Schedule

# A sum of ratios that exceeds an integer by less than this does so by rounding: it needs no further
# engine.
TOLERANCE = 1e-9


def load_ratio(schedule: Schedule, load: SmoothedLoad) -> float | None:
    """The load over the most that one engine serves within the SLA by ``schedule``.

    1: the engine is just full. None if no rate is known that it serves: then another engine would
    not help either, or nobody knows how much it would.
    """
    mix = nearest_mix(schedule, load)
    most_rps = 0.0
    for index in schedule.group(mix):
        band = schedule.bands[index]
        if band.headroom < 0 or not math.isfinite(band.rate_rps_high):
            break
        most_rps = band.rate_rps_high
    return equivalent_rate(load, mix) / most_rps if most_rps else None


def desired_replicas(ratios: Iterable[float | None]) -> int | None:
    """The fewest engines that serve what engines with these load ratios serve now; at least 1.

    None if one of them is not known: a guess would be read as a load.
    """
    known = list(ratios)
    if not known or any(ratio is None for ratio in known):
        return None
    total = math.fsum(ratio for ratio in known if ratio is not None)
    return max(1, math.ceil(total - TOLERANCE))
