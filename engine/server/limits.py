"""How much a server takes from a client, how long it waits for it, and how often a key may ask."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

# The most bytes of a request's line and headers together.
MAX_HEADER_BYTES = 32 * 2**10
# Requests that a key may save up for a burst, as seconds of its rate.
BURST_S = 10.0


class RateLimit:
    """A bucket of requests per caller, filled at ``rate_per_s``. Owned by the event loop."""

    def __init__(self, rate_per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate_per_s = rate_per_s
        self._size = max(1.0, rate_per_s * BURST_S)
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, caller: str) -> int | None:
        """Count one request of ``caller``; None if it may pass, else whole seconds to wait."""
        if not self._rate_per_s:
            return None
        now_s = self._clock()
        level, seen_s = self._buckets.get(caller, (self._size, now_s))
        level = min(self._size, level + (now_s - seen_s) * self._rate_per_s)
        may_pass = level >= 1
        self._buckets[caller] = (level - may_pass, now_s)
        return None if may_pass else max(1, math.ceil((1 - level) / self._rate_per_s))
