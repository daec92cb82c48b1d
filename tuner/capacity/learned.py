"""What runs of some plans say of the simulated capacity of others.

A simulated capacity is off by what the step model is off, and on a machine whose ranks share their
cores with the front end and the clients, by what those take. Plans that were run tell how much:
``log(measured / simulated)`` of each. Others are moved by the mean of plans with as many devices,
else of all, and their intervals are widened by how much it differed from plan to plan. Where few
were run, the error of the step model counts as one more of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from engine.spec.plan import ParallelPlan
from policies.capacity_table import CarriedRate
from policies.points import INTERVAL_Z

# Two plans differ by this much, as a log ratio (90 % half width), however good the step model is.
LEAST_DOUBT = 0.1


def corrected(
    entry: CarriedRate, log_ratios: Mapping[ParallelPlan, float], *, doubt: float
) -> CarriedRate:
    """A simulated ``entry`` as the ``log_ratios`` of plans that were run let it be believed.

    ``doubt`` is the 90 % half width of the step model's log ratios. Without any run nothing is
    known of what a step model leaves out, and the entry stays as it is. No run raises it: front end
    and clients only take away, and a model that is too slow for one plan (once by a factor of 250,
    of a mode it knew little of) is not so for another.
    """
    if not log_ratios:
        return entry
    alike = {p: r for p, r in log_ratios.items() if p.world_size == entry.num_devices}
    mean, half_width = _believed(list((alike or log_ratios).values()), max(doubt, LEAST_DOUBT))
    if not alike:  # more ranks on the same cores were never seen
        half_width += _range(list(log_ratios.values()))
    mean = min(0.0, mean)
    high = entry.high_rps
    return replace(
        entry,
        rate_rps=entry.rate_rps * math.exp(mean),
        low_rps=entry.low_rps * math.exp(mean - half_width),
        high_rps=None if high is None else high * math.exp(mean + half_width),
    )


def below(entry: CarriedRate, most_rps: float) -> CarriedRate:
    """``entry`` with its whole interval below a rate that was not carried."""
    factor = min(1.0, most_rps / entry.rate_rps)
    return replace(
        entry,
        rate_rps=entry.rate_rps * factor,
        low_rps=entry.low_rps * factor,
        high_rps=most_rps,
    )


def _believed(ratios: list[float], doubt: float) -> tuple[float, float]:
    """Mean of the ratios, and the 90 % half width of another plan's about it."""
    count, mean = len(ratios), sum(ratios) / len(ratios)
    squares = (doubt / INTERVAL_Z) ** 2 + sum((ratio - mean) ** 2 for ratio in ratios)
    spread = math.sqrt(squares / count)
    return mean, INTERVAL_Z * spread * math.sqrt(1 + 1 / count)


def _range(ratios: list[float]) -> float:
    return max(ratios) - min(ratios)
