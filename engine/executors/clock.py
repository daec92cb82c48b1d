"""Clocks: real time for serving, jumping time for simulation."""

from __future__ import annotations

import time


class WallClock:
    """Monotonic real time."""

    def now(self) -> float:
        return time.monotonic()

    def sleep_until(self, when_s: float) -> None:
        while (left := when_s - time.monotonic()) > 0:
            time.sleep(left)


class VirtualClock:
    """Time that only moves when someone waits for it; starts at 0."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def now(self) -> float:
        return self._now_s

    def sleep_until(self, when_s: float) -> None:
        self._now_s = max(self._now_s, when_s)
