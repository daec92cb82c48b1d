"""The seconds of a step that do not depend on attention: computed once per size, then looked up."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engine.spec.modes import Mode
from tuner.hardware.physics import FloatArray
from tuner.hardware.tables import FINE_ROWS, ROW_GRID

Seconds = tuple[float, ...]
# Seconds of each stage by mode, tokens and sampled rows.
Compute = Callable[[Mode, int, int], Seconds]

_ROWS = [int(rows) for rows in ROW_GRID]


@dataclass(frozen=True, kw_only=True)
class DenseFixed:
    """Seconds of a mode as compiled code reads them: ``body`` f8[tokens, stages], and what sampled
    rows add to the last stage, ``tail`` f8[sampled]. Not a number where nobody has asked yet."""

    body: FloatArray
    tail: FloatArray


class FixedTable:
    """Seconds of each stage, as ``compute`` gives them for a mode, tokens and sampled rows.

    Exact up to :data:`FINE_ROWS` rows per slice, linear between the grid points of larger steps,
    like the tables of the products. ``slices`` tells into how many a mode cuts a step. The times of
    tokens and of sampled rows add up, because layers never see the sampled rows.
    """

    def __init__(self, compute: Compute, *, slices: Callable[[Mode], int]) -> None:
        self._compute = compute
        self._slices = slices
        self._bodies: dict[tuple[Mode, int], Seconds] = {}
        self._tails: dict[tuple[Mode, int], Seconds] = {}
        self._dense: dict[Mode, DenseFixed] = {}

    def at(self, mode: Mode, tokens: int, sampled: int) -> Seconds:
        """Seconds of each stage."""
        body = self._bodies.get((mode, tokens))
        if body is None:
            body = self._bodies[mode, tokens] = self._between(mode, tokens)
        tail = self._tails.get((mode, sampled))
        if tail is None:
            tail = self._tails[mode, sampled] = self._tail(mode, sampled)
        # Only the last stage has a tail.
        return (*body[:-1], body[-1] + tail[-1])

    def dense(self, mode: Mode, *, tokens: int, sampled: int) -> DenseFixed:
        """The same seconds in arrays for steps of up to so many tokens and sampled rows."""
        known = self._dense.get(mode)
        if known is None or len(known.body) <= tokens or len(known.tail) <= sampled:
            # Never smaller than before, so that settings with any caps share one.
            tokens = max(tokens, len(known.body) - 1 if known else 0)
            sampled = max(sampled, len(known.tail) - 1 if known else 0)
            num_stages = len(self.at(mode, 1, 1))
            known = self._dense[mode] = DenseFixed(
                body=np.full((tokens + 1, num_stages), np.nan), tail=np.full(sampled + 1, np.nan)
            )
        return known

    def fill(self, dense: DenseFixed, mode: Mode, tokens: int, sampled: int) -> None:
        """Write the seconds of these sizes into ``dense``."""
        self.at(mode, tokens, sampled)
        dense.body[tokens] = self._bodies[mode, tokens]
        dense.tail[sampled] = self._tails[mode, sampled][-1]

    def _between(self, mode: Mode, tokens: int) -> Seconds:
        slices = self._slices(mode)
        if tokens <= FINE_ROWS * slices or tokens > _ROWS[-1] * slices:
            return self._body(mode, tokens)
        right = bisect_left(_ROWS, -(-tokens // slices))
        low, high = _ROWS[right - 1] * slices, _ROWS[right] * slices
        share = (tokens - low) / (high - low)
        return tuple(
            a + share * (b - a)
            for a, b in zip(self._body(mode, low), self._body(mode, high), strict=True)
        )

    def _body(self, mode: Mode, tokens: int) -> Seconds:
        found = self._bodies.get((mode, tokens))
        if found is None:
            found = self._bodies[mode, tokens] = self._compute(mode, tokens, 0)
        return found

    def _tail(self, mode: Mode, sampled: int) -> Seconds:
        with_tail, without = self._compute(mode, 1, sampled), self._compute(mode, 1, 0)
        return tuple(a - b for a, b in zip(with_tail, without, strict=True))
