"""The load of one replica, by which a router balances; live and simulated replicas keep this
book."""

from __future__ import annotations

import threading

from engine.spec.request import Request


class LoadBook:
    """The requests that one replica has been handed and has not ended. Any thread may write and
    read.

    ``tokens`` are those its requests may still grow to: a request counts with all its ``max_len``
    from the moment it is handed to the replica (:meth:`enter`) to the moment the scheduler ends it
    (:meth:`leave`), which is before its caller hears of it. ``num_coming`` of the requests are on
    their way to the scheduler. A book outlives the schedulers of its replica: requests of failed
    ranks are on their way to the next scheduler.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.num_coming = 0
        self._lock = threading.Lock()

    def enter(self, request: Request) -> None:
        """The replica is handed a request, which is on its way from now on."""
        with self._lock:
            self.tokens += request.max_len
            self.num_coming += 1

    def arrive(self) -> None:
        """A request is with the scheduler."""
        with self._lock:
            self.num_coming -= 1

    def set_out(self, count: int) -> None:
        """``count`` requests leave the scheduler and are on their way again."""
        with self._lock:
            self.num_coming += count

    def leave(self, request: Request) -> None:
        """A request that had arrived is over."""
        with self._lock:
            self.tokens -= request.max_len

    def turn_away(self, request: Request) -> None:
        """A request that was on its way is over."""
        self.arrive()
        self.leave(request)

    def clear(self) -> None:
        """Everyone has left for another replica."""
        with self._lock:
            self.tokens = self.num_coming = 0
