"""The sampling rule of one row, in numpy: what ranks on CPU run.

``engine.sampling.rules.draw`` is the same rule for all rows at once, and
``engine.sampling.triton_sampler`` in kernels, for which this one is the reference.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.sampling.philox import DrawKeys, fill_gumbel, gumbel_lanes, num_blocks

Logits = npt.NDArray[np.floating[Any]]
Float64Array = npt.NDArray[np.float64]

# Probabilities (the best token's is 1) are summed as whole numbers of 2**-34: exact in float64
# for vocabularies up to 2**19 tokens, hence the same in any order.
WEIGHT_SCALE = 2.0**34
# If a smaller share of the vocabulary than this is kept, noise is drawn for the kept tokens only.
FEW_KEPT_SHARE = 1 / 8
SUMMED_AT_ONCE = 256


def best_of_rows(logits: Logits) -> npt.NDArray[np.int64]:
    """The largest of each row of ``logits`` [R, V] (the first of equals; NaN as -inf) -> i8[R]."""
    ids = np.asarray(logits.argmax(axis=-1), dtype=np.int64)
    # argmax takes NaN for the largest number, so its answer shows whether a row holds one.
    has_nan = np.isnan(logits[np.arange(len(ids)), ids])
    if has_nan.any():
        rows = logits[has_nan]
        ids[has_nan] = np.where(np.isnan(rows), -np.inf, rows).argmax(axis=-1)
    return ids


def ordinary_row(logits: Logits) -> Logits:
    """``logits`` [V] as :func:`engine.sampling.rules.ordinary_rows` has them."""
    row: Logits = np.where(np.isnan(logits), -np.inf, logits)
    best = row.max()
    if best == np.inf:
        return np.where(row == np.inf, row.dtype.type(0), -np.inf)
    if best == -np.inf:
        row[0] = 0
    return row


class RowSampler:
    """Draws tokens of rows of one vocabulary, one row at a time.

    It only holds working memory, kept from row to row: for 128,256 tokens, fresh pages cost more
    than the numbers written to them (an unlimited draw takes 0.97 ms, with fresh pages 2.3 ms).
    """

    def __init__(self, vocab_size: int) -> None:
        self._scores = np.empty(vocab_size)
        self._weights = np.empty(vocab_size)
        self._ranked = np.empty(vocab_size)
        self._lanes = np.empty((num_blocks(vocab_size), 4))
        self._words = np.empty((6, num_blocks(vocab_size)), dtype=np.uint64)

    def draw(
        self,
        logits: Logits,
        *,
        temperature: float,
        min_p: float,
        top_k: int,
        top_p: float,
        key: DrawKeys,
    ) -> int:
        """One draw by Gumbel-max among the tokens of ``logits`` [V] that the limits keep.

        ``key`` is one row's; ``temperature`` > 0.
        """
        best = logits.max()
        if not np.isfinite(best):
            logits = ordinary_row(logits)
            best = logits.max()
        border = self.border(logits, temperature=temperature, min_p=min_p, top_k=top_k, top_p=top_p)
        is_kept = logits >= border
        if np.count_nonzero(is_kept) <= len(logits) * FEW_KEPT_SHARE:
            kept = np.flatnonzero(is_kept)
            scores = _scores(logits[kept], best, temperature, self._scores)
            scores += gumbel_lanes(key, lanes=kept[None, :])[0]
            return int(kept[scores.argmax()])
        scores = _scores(logits, best, temperature, self._scores)
        fill_gumbel(self._lanes, key, self._words)
        scores += self._lanes.reshape(-1)[: len(logits)]
        if border > -math.inf:
            np.copyto(scores, -np.inf, where=np.logical_not(is_kept, out=is_kept))
        return int(scores.argmax())

    def border(
        self, logits: Logits, *, temperature: float, min_p: float, top_k: int, top_p: float
    ) -> float:
        """The smallest of ``logits`` [V], of which the best is finite, that min-p, top-k and then
        top-p keep.
        """
        border, left = -math.inf, logits
        if 0 < top_k < len(logits):
            left = self._top_k(logits, top_k)
            border = float(left[0])
        if min_p > 0:
            border = max(border, float(logits.max()) + temperature * math.log(min_p))
        if top_p >= 1:
            return border
        if border == -math.inf:
            return self._top_p_border(logits, temperature, top_p)
        return self._top_p_border_of_few(left[left >= border], temperature, top_p)

    def _top_k(self, logits: Logits, top_k: int) -> Logits:
        """Exactly the ``top_k`` best of ``logits``, whatever the ties; the smallest comes first."""
        ranked: Logits = self._ranked.view(logits.dtype)[: len(logits)]
        ranked[:] = logits
        ranked.partition(len(logits) - top_k)
        return ranked[-top_k:]

    def _top_p_border(self, logits: Logits, temperature: float, top_p: float) -> float:
        """Top-p over the whole vocabulary."""
        best = logits.max()
        weights = _weights(_scores(logits, best, temperature, self._weights))
        total = float(weights.sum())
        # All tokens below this weight together weigh less than top-p may drop, so none of them can
        # be the border.
        places = np.flatnonzero(weights >= (1 - top_p) * total / len(weights))
        ranked = self._ranked.view(logits.dtype)[: len(places)]
        np.take(logits, places, out=ranked, mode="clip")
        return self._least_kept(ranked, best, temperature, top_p * total)

    def _top_p_border_of_few(self, few: Logits, temperature: float, top_p: float) -> float:
        """Top-p over ``few``, which are the best of a row; sorts them."""
        best = few.max()
        total = float(_weights(_scores(few, best, temperature, self._weights)).sum())
        return self._least_kept(few, best, temperature, top_p * total)

    def _least_kept(
        self, ranked: Logits, best: np.floating[Any], temperature: float, wanted: float
    ) -> float:
        """Sort ``ranked`` in place; returns the last one, from the best down, with less weight than
        ``wanted`` before it.
        """
        ranked.sort()
        weights = _weights(_scores(ranked[::-1], best, temperature, self._weights))
        return float(ranked[::-1][max(1, _num_before(weights, wanted)) - 1])


def _num_before(weights: Float64Array, wanted: float) -> int:
    """How many of ``weights`` have less than ``wanted`` before them.

    The weights are whole numbers, so summing them in blocks is exact, and far quicker than one by
    one.
    """
    # First the block in which the sum reaches ``wanted``, then the place inside it.
    starts = np.arange(0, len(weights), SUMMED_AT_ONCE)
    after = np.add.reduceat(weights, starts).cumsum()
    block = int(np.searchsorted(after, wanted, side="left"))
    if block == len(starts):
        return len(weights)
    first = block * SUMMED_AT_ONCE
    some = weights[first : first + SUMMED_AT_ONCE]
    before = some.cumsum() - some + (after[block - 1] if block else 0.0)
    return first + int(np.searchsorted(before, wanted, side="left"))


def _scores(
    logits: Logits, best: np.floating[Any], temperature: float, out: Float64Array
) -> Float64Array:
    """``(logits - best) / temperature`` in ``out``."""
    scores = out[: len(logits)]
    scores[:] = logits
    with np.errstate(over="ignore"):
        scores -= best
        scores /= temperature
    return scores


def _weights(scores: Float64Array) -> Float64Array:
    """Unnormalised probabilities as whole numbers, in place."""
    np.exp(scores, out=scores)
    scores *= WEIGHT_SCALE
    return np.rint(scores, out=scores)
