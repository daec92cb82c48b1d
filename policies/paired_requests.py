"""Two settings compared on the very same requests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from policies.effect import Effect
from policies.errors import PolicyInputError

DRAWS = 1000


def paired_effect(
    control: Sequence[bool], candidate: Sequence[bool], groups: Sequence[int], *, alpha: float
) -> Effect:
    """Share of requests that the candidate met, less that of control; ``groups`` are drawn anew
    with replacement for the bounds (each missed with a chance of about ``alpha``), since requests
    that came together fare alike. A single group bounds nothing.

    Raises:
        PolicyInputError: sequences of different lengths.
    """
    if not len(control) == len(candidate) == len(groups):
        raise PolicyInputError(
            f"{len(control)} and {len(candidate)} requests in {len(groups)} groups: must be as many"
        )
    if not len(control):
        return Effect(mean=None, low=-1.0, high=1.0)
    better = np.asarray(candidate, dtype=np.float64) - np.asarray(control, dtype=np.float64)
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    totals, counts = np.bincount(index, weights=better), np.bincount(index)
    mean = float(better.mean())
    if len(counts) == 1:
        return Effect(mean=mean, low=-1.0, high=1.0)
    picked = np.random.default_rng(0).integers(0, len(counts), (DRAWS, len(counts)))
    drawn = totals[picked].sum(axis=1) / counts[picked].sum(axis=1)
    low, high = np.quantile(drawn, (alpha, 1 - alpha))
    return Effect(mean=mean, low=float(low), high=float(high))
