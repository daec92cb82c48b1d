"""Corrects the simulated capacity of plans by runs of other plans.

A simulated capacity is off by as much as the step model, and, on a machine whose ranks share their
cores with the front end and the clients, by what those take. Each plan that was run tells how much:
``log(measured / simulated)``. Other plans are moved by the mean over plans with as many devices (or
over all), and their intervals are widened by how much plans differ. If few plans were run, the
error of the step model counts as one more of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from engine.spec.plan import ParallelPlan
from policies.capacity_table import CarriedRate
from policies.points import INTERVAL_Z

# However good the step model is, two plans differ by this much, as a log ratio (90 % half width).
LEAST_DOUBT = 0.1


def corrected(
    entry: CarriedRate, log_ratios: Mapping[ParallelPlan, float], *, doubt: float
) -> CarriedRate:
    """A simulated ``entry``, corrected by the ``log_ratios`` of plans that were run.

    ``doubt`` is the 90 % half width of the step model's log ratios. Without any run, nothing is
    known of what a step model leaves out, and the entry stays as it is. Runs never raise it: front
    end and clients only take away, and a model that is too slow for one plan (once by a factor of
    250, for a mode it knew little of) need not be so for another.
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
