"""Where Shift should switch: the threshold at which base becomes the faster mode."""

from __future__ import annotations

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


def shift_threshold(pairs: Sequence[StepPair]) -> int:
    """The best threshold for ``pairs`` (sizes in any order, repeats allowed); 0 = always base.

    Fits the threshold rule (n > threshold -> base, arXiv 2509.16495) to step times. It minimises
    the total time over all sizes instead of looking for the first crossing, so one noisy pair
    cannot move it far.

    Raises:
        PolicyInputError: no pair, or a size, time or weight that is not positive.
    """
    _check(pairs)
    sizes = np.unique([p.num_tokens for p in pairs])
    return _threshold(pairs, sizes, int(_cost_by_split(pairs, sizes).argmin()))


def _check(pairs: Sequence[StepPair]) -> None:
    if not pairs:
        raise PolicyInputError("shift rule: no step times to advise from; profile both modes first")
    for pair in pairs:
        values = (pair.num_tokens, pair.base_ms, pair.shift_ms, pair.weight)
        if not all(math.isfinite(v) and v > 0 for v in values):
            raise PolicyInputError(f"shift rule: {pair} has a value that is not above 0")


def _cost_by_split(
    pairs: Sequence[StepPair], sizes: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Total time when the first k sizes run in shift and the rest in base, f8[sizes + 1]."""
    base, shift = np.zeros(len(sizes)), np.zeros(len(sizes))
    for pair in pairs:
        at = int(np.searchsorted(sizes, pair.num_tokens))
        base[at] += pair.weight * pair.base_ms
        shift[at] += pair.weight * pair.shift_ms
    in_shift = np.concatenate([[0.0], np.cumsum(shift)])
    in_base = np.concatenate([np.cumsum(base[::-1])[::-1], [0.0]])
    return np.asarray(in_shift + in_base, dtype=np.float64)


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
