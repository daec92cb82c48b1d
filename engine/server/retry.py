"""When a caller that was turned away should come back."""

from __future__ import annotations

import math
from collections import deque

from engine.server.errors import QUEUE_RETRY_S

WINDOW_S = 30.0
MAX_RETRY_S = 60
MAX_FINISHES = 1024


class FinishRate:
    """Requests finished lately; from their rate it guesses how many seconds a queue lasts."""

    def __init__(self) -> None:
        self._finished_s: deque[float] = deque(maxlen=MAX_FINISHES)

    def record(self, now_s: float) -> None:
        """One request has finished."""
        self._finished_s.append(now_s)

    def queue_s(self, num_waiting: int, now_s: float) -> int:
        """Whole seconds after which the requests that wait now will have been served, 1..60."""
        recent = [at for at in self._finished_s if at >= now_s - WINDOW_S]
        if not recent or now_s <= recent[0]:
            return QUEUE_RETRY_S
        seconds_each = (now_s - recent[0]) / len(recent)
        return min(max(math.ceil(num_waiting * seconds_each), 1), MAX_RETRY_S)
