"""Ends live runs that are hopeless, and those that a budget has no time left for."""

from __future__ import annotations

import time
from collections.abc import Callable

from engine.spec.measurement import Outcome, RequestTiming
from policies.late import LateLimit, late_limits
from policies.sla import Sla


class LiveWatch:
    """Hears of every request of a run that ends, and says when the run may stop, and why.

    It is hopeless once more requests are late, or have failed, than the SLA allows of all of them:
    those still to come cannot make that good. ``sla`` None: its numbers are wanted whatever they
    are. ``allowed_s``: seconds that the run may take from now, None: as long as it wants.
    """

    def __init__(
        self,
        sla: Sla | None,
        num_requests: int,
        *,
        allowed_s: float | None = None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        limits = () if sla is None else late_limits(sla, num_requests)
        self._late: dict[LateLimit, int] = dict.fromkeys(limits, 0)
        self._num_requests = num_requests
        self._num_ended = 0
        self._until_s = None if allowed_s is None else time.monotonic() + allowed_s
        self._allowed_s = allowed_s
        self._is_cancelled = is_cancelled
        self.hopeless: str | None = None
        self.stopped: str | None = None

    def hear(self, timing: RequestTiming) -> None:
        """Count a request that has ended."""
        self._num_ended += timing.outcome is not Outcome.CUT
        for limit in self._late:
            self._late[limit] += limit.is_over(timing)
        over = [(count, limit) for limit, count in self._late.items() if count > limit.num_allowed]
        if over and self.hopeless is None:
            count, limit = max(over, key=lambda pair: pair[0])
            self.hopeless = (
                f"stopped: {count} of the first {self._num_ended} requests miss "
                f"{limit.constraint}; at most {limit.num_allowed} of all {self._num_requests} may"
            )

    def should_stop(self) -> bool:
        """Whether to stop now; ``stopped`` tells why, unless it was cancelled."""
        if self.stopped is None:
            self.stopped = self.hopeless or self._out_of_time()
        return self.stopped is not None or self._is_cancelled()

    def _out_of_time(self) -> str | None:
        if self._until_s is None or time.monotonic() < self._until_s:
            return None
        return f"stopped: the budget had {self._allowed_s:.0f} s left for it, and they are used"
