"""How much better or worse one of two settings is, told after any number of comparisons.

Two settings serve by turns, in pairs of slices of time whose order is drawn by lot: a switchback
experiment (Bojinov, Simchi-Levi and Zhao, "Design and Analysis of Switchback Experiments",
Management Science 2023). The difference of a pair is *effect + luck*, and because of the lot the
luck of a pair is as likely to be ``x`` as ``-x``, whatever the load did before and meanwhile, how
bursty it is, and how much requests of one slice have to do with each other. Nothing else is
assumed.

For a conditionally symmetric ``y`` and any ``bet`` > 0, ``2 / (1 + exp(-2 bet y))`` is 1 in the
mean (its values at ``y`` and ``-y`` add up to 2), so that the product over pairs is a non-negative
martingale that starts at 1; so is a mean over several bets. By Ville's inequality it ever reaches
``1 / alpha`` with a chance of at most ``alpha``: one may look after every pair and stop at once
(the four steps of Theorem 1 in Waudby-Smith and Ramdas, "Estimating means of bounded random
variables by betting", JRSS B 2024, with this martingale of symmetric differences for theirs of
bounded ones; symmetric ones are those of de la Pena, "A general class of exponential inequalities
for martingales and ratios", Annals of Probability 1999, Lemma 6.1). The effects that are not
rejected so, one by one, are a confidence sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from policies.errors import PolicyInputError

# Attainment may differ by a thousandth or by all of it, and the best bet is about the effect over
# the variance of luck: so bets of every size are made side by side.
BETS = np.array([1.0, 3.0, 10.0, 30.0, 100.0])
# Attainment is from 0 to 1.
MOST = 1.0
HALVINGS = 40

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """Candidate less control. Over all the times that it is looked at, ``low`` is above the effect
    with a chance of at most ``alpha``, and ``high`` is below it with at most the same; ``mean`` is
    that of the pairs so far, None before the first."""

    mean: float | None
    low: float
    high: float


def log_evidence(differences: Sequence[float], bound: float) -> float:
    """The most that there ever was, after one of the pairs, of the evidence against "the effect is
    at most ``bound``", as a natural logarithm; at least 0.

    Raises:
        PolicyInputError: a difference or bound that is not finite.
    """
    y = np.asarray(differences, dtype=np.float64) - bound
    if not np.isfinite(y).all():
        raise PolicyInputError(f"differences {list(differences)} less {bound}: must be finite")
    if not len(y):
        return 0.0
    # log(2 / (1 + exp(-z))), [pairs, bets], and its sums after each pair
    wealth = np.cumsum(math.log(2) - np.logaddexp(0.0, -2 * np.outer(y, BETS)), axis=0)
    after_each = np.logaddexp.reduce(wealth, axis=1) - math.log(len(BETS))
    return max(0.0, float(after_each.max()))


def is_above(differences: Sequence[float], bound: float, *, alpha: float) -> bool:
    """Whether the effect is above ``bound``; wrong with a chance of at most ``alpha``, however
    often it is asked as differences are added."""
    return log_evidence(differences, bound) >= -math.log(alpha)


def is_below(differences: Sequence[float], bound: float, *, alpha: float) -> bool:
    """Whether the effect is below ``bound``, as in :func:`is_above`."""
    return is_above([-difference for difference in differences], -bound, alpha=alpha)


def effect_of(differences: Sequence[float], *, alpha: float) -> Effect:
    """The effect, between its bounds.

    Raises:
        PolicyInputError: a difference that is not finite.
    """
    mirrored = [-difference for difference in differences]
    return Effect(
        mean=float(np.mean(differences)) if len(differences) else None,
        low=_low(differences, alpha),
        high=-_low(mirrored, alpha),
    )


def _low(differences: Sequence[float], alpha: float) -> float:
    """The largest bound that the effect is known to be above: evidence falls as the bound rises."""
    if not is_above(differences, -MOST, alpha=alpha):
        return -MOST
    low, high = -MOST, MOST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_above(differences, middle, alpha=alpha) else (low, middle)
    return low
