"""Curves tabulated before a run: a look-up during it takes about a microsecond."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log

import numpy as np

from tuner.hardware.physics import FloatArray

MAX_PLACES = 8192  # remembered per axis: counts of sequences come again and again
FINE_ROWS = 256  # every number of rows up to here has its own entry


def row_grid() -> FloatArray:
    """Numbers of rows to tabulate: all small ones, then both sides of every edge of a tile."""
    fine = range(1, FINE_ROWS + 1)
    middle = [m for edge in range(FINE_ROWS, 1024, 64) for m in (edge + 1, edge + 64)]
    coarse = [m for edge in range(1024, 8192, 256) for m in (edge + 1, edge + 256)]
    far = [round(8192 * 2 ** (i / 2)) for i in range(1, 13)]
    return np.array([*fine, *middle, *coarse, *far], dtype=np.float64)


ROW_GRID = row_grid()


def rising(seconds: FloatArray) -> FloatArray:
    """The nearest curve that never falls: half way between its upper and lower envelope.

    More rows never take less time on average; but a measured curve, and a fit to it, dips by some
    percent where a better kernel begins. f8[..., M] along the last axis.
    """
    above = np.maximum.accumulate(seconds, axis=-1)
    below = np.flip(np.minimum.accumulate(np.flip(seconds, axis=-1), axis=-1), axis=-1)
    return np.asarray((above + below) / 2)


class RowTable:
    """Seconds over the rows of :data:`ROW_GRID`; straight between them and beyond."""

    def __init__(self, seconds: FloatArray) -> None:
        self._rows = [int(m) for m in ROW_GRID]
        self._seconds = rising(seconds).tolist()

    def at(self, rows: int) -> float:
        if rows <= 0:
            return 0.0
        if rows <= FINE_ROWS:
            return float(self._seconds[rows - 1])
        right = min(bisect_left(self._rows, rows), len(self._rows) - 1)
        x0, x1 = self._rows[right - 1], self._rows[right]
        y0, y1 = self._seconds[right - 1], self._seconds[right]
        return float(y0 + (rows - x0) * (y1 - y0) / (x1 - x0))


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Rising grid points, looked up on a log scale (``x + 1``) or a straight one."""

    points: tuple[float, ...]
    is_log: bool = True

    def __post_init__(self) -> None:
        assert all(a < b for a, b in pairwise(self.points)), "an axis rises"
        scale: Callable[[float], float] = (lambda x: log(1.0 + x)) if self.is_log else float
        object.__setattr__(self, "_scaled", [scale(x) for x in self.points])
        object.__setattr__(self, "_found", {})

    @property
    def scaled(self) -> FloatArray:
        """The points on the axis' own scale, f8[points]."""
        return np.array(self.__dict__["_scaled"], dtype=np.float64)

    def find(self, x: float) -> tuple[int, float]:
        """The grid point left of x, and x's share of the way from it to the next (may exceed 1)."""
        found: dict[float, tuple[int, float]] = self.__dict__["_found"]
        if (known := found.get(x)) is not None:
            return known
        place = self._place(x)
        if len(found) < MAX_PLACES:
            found[x] = place
        return place

    def _place(self, x: float) -> tuple[int, float]:
        scaled: Sequence[float] = self.__dict__["_scaled"]
        value = log(1.0 + x) if self.is_log else x
        left = min(max(bisect_left(scaled, value) - 1, 0), len(scaled) - 2)
        share = (value - scaled[left]) / (scaled[left + 1] - scaled[left])
        return left, max(0.0, share)


DECODE_SEQS = Axis(
    points=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096)
)
DECODE_CONTEXT = Axis(points=(1, *(2.0**i for i in range(4, 22))))
PREFILL_SEQS = Axis(points=tuple(2.0**i for i in range(11)))
PREFILL_QUERIES = Axis(
    points=(1, *(2.0**i for i in range(4, 8)), *(2.0 ** (i / 2) for i in range(15, 35)))
)
PREFIX = Axis(points=(0, 128, 512, 1024, 2048, 4096, 8192, 16384, 65536, 262144), is_log=False)


class Grid2:
    """Seconds over two axes, straight between log times."""

    def __init__(self, first: Axis, second: Axis, seconds: FloatArray) -> None:
        self.first, self.second = first, second
        # A longer call is never faster, along either axis.
        self.logs: FloatArray = np.log(rising(rising(seconds.T).T))
        self._logs = self.logs.tolist()

    def at(self, x: float, y: float) -> float:
        i, u = self.first.find(x)
        j, v = self.second.find(y)
        low, high = self._logs[i], self._logs[i + 1]
        left = low[j] + v * (low[j + 1] - low[j])
        right = high[j] + v * (high[j + 1] - high[j])
        return exp(left + u * (right - left))


class Grid3:
    """Seconds over three axes: straight between log times along the first two, between times
    along the last (work grows in proportion to a prefix)."""

    def __init__(self, first: Axis, second: Axis, last: Axis, seconds: FloatArray) -> None:
        self.last = last
        layers = np.moveaxis(rising(seconds), -1, 0)
        self.layers = [Grid2(first, second, layer) for layer in layers]

    def at(self, x: float, y: float, z: float) -> float:
        k, w = self.last.find(z)
        low = self.layers[k].at(x, y)
        if w == 0.0:
            return low
        return low + w * (self.layers[k + 1].at(x, y) - low)
