"""Who gets in when more requests come than can be carried: a token bucket with priorities.

It has no clock: the caller passes the time, so that a simulated door follows the same rule.
"""

from __future__ import annotations

import math

from engine.spec.admission import Admission
from engine.spec.errors import OverloadError
from engine.spec.request import Request

# A priority counts while somebody has asked with it this recently; at most this many are kept, the
# newest.
SEEN_S = 60.0
MOST_SEEN = 32


class AdmissionBucket:
    """A bucket of requests, filled at the admitted rate up to the burst. A request takes one out.

    As in the scheduler, a smaller priority number is more urgent. Each priority may use half as
    much of the bucket as the next more urgent one: of two, the lower one takes nothing from the
    lower half. So the most urgent priority gets at least as many requests in as if it were alone
    with the whole rate and half the burst; the others get what it does not need. In ``t`` seconds
    no more than ``rate * t + burst`` requests are let in. A call of several requests comes in as a
    whole. One that is larger than the bucket waits until the bucket is full, and may leave a debt.

    Not thread safe: whoever calls holds the door's lock.
    """

    def __init__(self, admission: Admission, now_s: float) -> None:
        self.admission = admission
        self._level = float(admission.burst)
        self._filled_s = now_s
        self._seen_s: dict[int, float] = {}

    def change(self, admission: Admission, now_s: float) -> None:
        """Fill at another rate from now on; what is in the bucket stays, as far as it fits."""
        self._fill(now_s)
        self.admission = admission
        self._level = min(self._level, float(admission.burst))

    def check(self, priority: int, size: int, now_s: float) -> None:
        """Whether a call of ``size`` requests may come in; takes nothing.

        Raises:
            OverloadError: not now; it says after how many seconds.
        """
        self._fill(now_s)
        self._note(priority)
        missing = self._needed(priority, size) - self._level
        if missing > 0:
            rate_rps = self.admission.rate_rps
            raise OverloadError(
                f"more requests come than the admitted {rate_rps:g} per second",
                retry_s=missing / rate_rps,
            )

    def take(self, size: int) -> None:
        """A call of ``size`` requests that was checked has come in."""
        self._level -= size

    def _fill(self, now_s: float) -> None:
        # Threads may read their clocks in another order than they take the lock.
        waited_s = max(0.0, now_s - self._filled_s)
        burst = float(self.admission.burst)
        self._level = min(burst, self._level + waited_s * self.admission.rate_rps)
        self._filled_s = max(self._filled_s, now_s)

    def _needed(self, priority: int, size: int) -> float:
        """What has to be in the bucket for a call of this priority."""
        burst = float(self.admission.burst)
        kept = burst * (1 - math.pow(0.5, self._num_above(priority)))
        return min(burst, kept + size)

    def _note(self, priority: int) -> None:
        """Note that somebody asks with this priority; seen ones are kept in the order of their last
        time."""
        seen = self._seen_s
        seen.pop(priority, None)
        seen[priority] = self._filled_s
        oldest = next(iter(seen))
        while len(seen) > MOST_SEEN or seen[oldest] < self._filled_s - SEEN_S:
            del seen[oldest]
            oldest = next(iter(seen))

    def _num_above(self, priority: int) -> int:
        """How many more urgent priorities came lately."""
        return sum(other < priority for other in self._seen_s)


class AdmissionRule:
    """What a door obeys: a bucket while the policy limits admission, else everybody gets in.

    First :meth:`check`, then :meth:`take` once the request has really come in: one that the queue
    has no room for takes nothing. Not thread safe, as the bucket.
    """

    def __init__(self) -> None:
        self._bucket: AdmissionBucket | None = None

    def follow(self, admission: Admission | None, now_s: float) -> None:
        """Obey this setting from now on; None: let in whatever comes."""
        if admission is None:
            self._bucket = None
        elif self._bucket is None:
            self._bucket = AdmissionBucket(admission, now_s)
        elif admission != self._bucket.admission:
            self._bucket.change(admission, now_s)

    def check(self, request: Request, now_s: float) -> None:
        """Raises OverloadError where ``request`` may not come in now."""
        if self._bucket is not None and request.num_let_in:
            self._bucket.check(request.priority, request.num_let_in, now_s)

    def take(self, request: Request) -> None:
        """``request`` was checked and has come in."""
        if self._bucket is not None:
            self._bucket.take(request.num_let_in)
