"""Where Shift should switch: the thresholds above which modes with more slices are faster."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from policies.errors import PolicyInputError


@dataclass(frozen=True, kw_only=True)
class StepPair:
    """Time of one step of ``num_tokens`` in each mode; ``weight`` = how often it occurs."""

    num_tokens: int
    base_ms: float
    shift_ms: float
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class LadderTimes:
    """Time of one step of ``num_tokens`` in each mode, that of the fewest slices first."""

    num_tokens: int
    mode_ms: tuple[float, ...]
    weight: float = 1.0


def shift_threshold(pairs: Sequence[StepPair]) -> int:
    """The best threshold for ``pairs`` (sizes in any order, repeats allowed); 0 = always base.

    Fits the threshold rule (n > threshold -> base, arXiv 2509.16495) to step times. It minimises
    the total time over all sizes instead of looking for the first crossing, so one noisy pair
    cannot move it far.

    Raises:
        PolicyInputError: no pair, or a size, time or weight that is not positive.
    """
    _check(pairs)
    times = [
        LadderTimes(num_tokens=p.num_tokens, mode_ms=(p.shift_ms, p.base_ms), weight=p.weight)
        for p in pairs
    ]
    return ladder_thresholds(times)[0] or 0


def ladder_thresholds(times: Sequence[LadderTimes]) -> tuple[int | None, ...]:
    """The best threshold of every mode but the last, of which larger steps take the next; None: no
    step is fastest in that mode.

    As :func:`shift_threshold`, among all ways to give each mode one range of sizes, those of fewer
    slices the smaller ones.

    Raises:
        PolicyInputError: no times, of unequal modes, or a value that is not positive.
    """
    _check_times(times)
    sizes = np.unique([t.num_tokens for t in times])
    splits = _best_splits(times, sizes)
    found: list[int | None] = []
    edges = (0, *splits, len(sizes))
    for mode, (start, end) in enumerate(itertools.pairwise(edges[:-1])):
        if start == end:
            found.append(None)
            continue
        # Modes without a size of their own lie between no others.
        later = range(mode + 1, len(edges) - 1)
        after = next((m for m in later if edges[m + 1] > end), later[-1])
        pairs = [
            StepPair(
                num_tokens=t.num_tokens,
                base_ms=t.mode_ms[after],
                shift_ms=t.mode_ms[mode],
                weight=t.weight,
            )
            for t in times
        ]
        found.append(_threshold(pairs, sizes, end))
    return tuple(found)


def _check(pairs: Sequence[StepPair]) -> None:
    if not pairs:
        raise PolicyInputError("shift rule: no step times to advise from; profile both modes first")
    for pair in pairs:
        values = (pair.num_tokens, pair.base_ms, pair.shift_ms, pair.weight)
        if not all(math.isfinite(v) and v > 0 for v in values):
            raise PolicyInputError(f"shift rule: {pair} has a value that is not above 0")


def _check_times(times: Sequence[LadderTimes]) -> None:
    if not times or len({len(t.mode_ms) for t in times}) > 1:
        raise PolicyInputError("shift rule: give every step's time in each mode")
    for t in times:
        if not all(math.isfinite(v) and v > 0 for v in (t.num_tokens, t.weight, *t.mode_ms)):
            raise PolicyInputError(f"shift rule: {t} has a value that is not above 0")


def _best_splits(times: Sequence[LadderTimes], sizes: npt.NDArray[np.int64]) -> list[int]:
    """How many of the sizes run in each mode or one before it, of all modes but the last, so that
    the total time is least; fewest sizes where several do.
    """
    num_modes = len(times[0].mode_ms)
    spent = np.zeros((num_modes, len(sizes) + 1))
    for t in times:
        at = int(np.searchsorted(sizes, t.num_tokens))
        spent[:, at + 1] += t.weight * np.array(t.mode_ms)
    spent = spent.cumsum(axis=1)  # of the first k sizes, all in one mode
    best, choices = spent[0], []
    for mode in range(1, num_modes):
        # Modes before have the first i of k sizes: best[i] + spent[k] - spent[i], i at most k.
        ahead = best - spent[mode]
        first = np.array([int(ahead[: k + 1].argmin()) for k in range(len(ahead))])
        best = spent[mode] + ahead[first]
        choices.append(first)
    splits, k = [], len(sizes)
    for first in reversed(choices):
        k = int(first[k])
        splits.append(k)
    return splits[::-1]


def _size_at(sizes: npt.NDArray[np.int64], split: int) -> int:
    """The largest size that runs in shift at this split; 0 = none."""
    return int(sizes[split - 1]) if split else 0


def _threshold(pairs: Sequence[StepPair], sizes: npt.NDArray[np.int64], split: int) -> int:
    """The crossing between the two sizes around the split, by linear interpolation."""
    low = _size_at(sizes, split)
    if split in (0, len(sizes)):
        return low
    below, above = _gain(pairs, low), _gain(pairs, int(sizes[split]))
    if not below > 0 > above:
        return low
    crossing = low + (int(sizes[split]) - low) * below / (below - above)
    # The next size itself must stay in base.
    return min(int(crossing), int(sizes[split]) - 1)


def _gain(pairs: Sequence[StepPair], num_tokens: int) -> float:
    """Milliseconds shift saves at one size, averaged over repeats."""
    at = [p for p in pairs if p.num_tokens == num_tokens]
    weights = sum(p.weight for p in at)
    return sum(p.weight * (p.base_ms - p.shift_ms) for p in at) / weights
