"""How far a run of a model that was never served may lie from what its system is off by on average.

A run's error is the system's mean, plus what its group (a model on a device) is off by, plus what
the run is off by itself.

* How far groups scatter is hardly known, since they are few. What is likely of it is its posterior,
  where before all of it is as likely as a half-Cauchy variable is that runs of one group give the
  width (Gelman, Bayesian Analysis 1, 2006).
* How far runs of the new group scatter is not known either: as those of a group of its system, or
  of another kind, which groups of every system tell. With ``n`` groups of its system it is another
  kind in one case of ``n`` + 1 (Blackwell and MacQueen, Annals of Statistics 1, 1973).

So the error is a mixture of normals. Its middle is narrower and its tails are longer than those of
the one normal with the same ends of an interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
# As many equally likely standard deviations stand for all.
NUM_SPREADS = 6
# What groups scatter by is looked for up to so many times what they were seen to.
WIDEST, NUM_STEPS = 10.0, 2000
LEAST = 1e-3


def spreads_of_another(
    own: Sequence[FloatArray], others: Sequence[Sequence[FloatArray]]
) -> tuple[float, ...]:
    """``NUM_SPREADS`` standard deviations about the system's mean, each as likely, of a run of
    another group than ``own``: the errors f8[runs] of each group of its system. ``others`` are the
    groups of each other system, which lie about a mean of their own."""
    systems = [own, *others]
    mine = np.array([_variance(group) for group in own])
    every = np.array([_variance(group) for groups in systems for group in groups])
    between = _group_spreads(systems, scale=math.sqrt(float(mine.mean())))
    # The mean that it is told about is that of so many groups, and is off by its share of that.
    known = 1 + 1 / len(own)
    spread = np.sqrt(np.append(mine, every)[:, None] + known * between[None, :] ** 2)
    new = 1 / (len(own) + 1)
    weight = np.append((1 - new) * _shares(mine), new * _shares(every))
    found = _quantiles(spread, np.broadcast_to(weight[:, None], spread.shape), NUM_SPREADS)
    return tuple(round(float(each), 4) for each in found)


def _group_spreads(systems: Sequence[Sequence[FloatArray]], *, scale: float) -> FloatArray:
    """Equally likely standard deviations of what groups are off by about their system's mean."""
    squares, freedom, noise = 0.0, 0, []
    for groups in systems:
        means = np.array([group.mean() for group in groups])
        squares += float(((means - means.mean()) ** 2).sum())
        freedom += len(groups) - 1
        noise += [_variance(group) / len(group) for group in groups]
    scale = max(scale, LEAST)
    most = WIDEST * max(scale, math.sqrt(squares / max(1, freedom)))
    spread = (np.arange(NUM_STEPS) + 0.5) * most / NUM_STEPS
    total = spread**2 + max(float(np.mean(noise)), LEAST**2)
    log_chance = -freedom / 2 * np.log(total) - squares / (2 * total)
    log_chance -= np.log1p((spread / scale) ** 2)
    return _quantiles(spread, np.exp(log_chance - log_chance.max()), 4 * NUM_SPREADS)


def _quantiles(values: FloatArray, weights: FloatArray, count: int) -> FloatArray:
    """The middles of ``count`` equal shares of ``values``."""
    order = np.argsort(values, axis=None)
    weights = weights.ravel()[order]
    below = (weights.cumsum() - weights / 2) / weights.sum()
    middles = (np.arange(count) + 0.5) / count
    found: FloatArray = np.interp(middles, below, values.ravel()[order])
    return found


def _shares(values: FloatArray) -> FloatArray:
    """Of as many, each as likely."""
    return np.full(len(values), 1 / len(values))


def _variance(group: FloatArray) -> float:
    return float(group.var(ddof=1)) if len(group) > 1 else 0.0
