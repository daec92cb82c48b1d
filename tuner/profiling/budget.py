"""Wall-clock seconds shared by parts whose starts take a time that nobody knows beforehand."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# The assumed cost of the first part's start; each later one is assumed to cost what the last did.
FIRST_START_S = 1.0


class Budget:
    """A number of seconds from now on.

    ``fixed_s`` counts what parts took beyond the seconds they were given to measure: processes,
    weights, and the least number of repeats.
    """

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.fixed_s = 0.0
        self._clock = clock
        self._ends_s = clock() + seconds
        self._start_s = FIRST_START_S

    @property
    def left_s(self) -> float:
        """Seconds until the end, not below 0."""
        return max(0.0, self._ends_s - self._clock())

    def inner(self, share: float) -> Budget:
        """A budget of its own over this share of what is left."""
        return Budget(share * self.left_s, clock=self._clock)

    @contextmanager
    def part(self, share: float) -> Iterator[float]:
        """Yields how long a part may measure, so that with its start it takes this share of what
        is left."""
        granted_s = max(0.0, share * self.left_s - self._start_s)
        begun_s = self._clock()
        yield granted_s
        self._start_s = max(0.0, self._clock() - begun_s - granted_s)
        self.fixed_s += self._start_s

    @contextmanager
    def start(self) -> Iterator[None]:
        """Counts what happens inside as fixed."""
        begun_s = self._clock()
        yield
        self.fixed_s += self._clock() - begun_s
