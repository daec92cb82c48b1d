"""Work that ends early when whoever asked for it gives up."""

from __future__ import annotations

import time
from collections.abc import Callable

from tuner.spec.errors import CancelledError

# Asking may be a query of a database, and people wait about a second for an answer.
LOOK_EVERY_S = 0.2


class Cancellation:
    """Tells work under way whether it was cancelled, however often it asks.

    ``is_cancelled`` is asked every ``every_s`` at most, and no more once it said yes. Any thread
    may use it.
    """

    def __init__(self, is_cancelled: Callable[[], bool], *, every_s: float = LOOK_EVERY_S) -> None:
        self._is_cancelled = is_cancelled
        self._every_s = every_s
        self._next_s = 0.0
        self._is_over = False

    @property
    def is_over(self) -> bool:
        """Whether it was cancelled, as far as is known."""
        now_s = time.monotonic()
        if not self._is_over and now_s >= self._next_s:
            self._next_s = now_s + self._every_s
            self._is_over = self._is_cancelled()
        return self._is_over

    def check(self) -> None:
        """Raises CancelledError once it was cancelled."""
        if self.is_over:
            raise CancelledError("cancelled while it was prepared")


# Work that nobody can cancel.
NEVER = Cancellation(lambda: False)
