"""When a call that failed is sent again, and after how long."""

from __future__ import annotations

import random
from dataclasses import dataclass

import httpx

from api.clients.calls import Call

# The request was turned away before anything was done.
TURNED_AWAY = (httpx.codes.TOO_MANY_REQUESTS,)
# It may have been done: only what does no more when it is sent twice goes again.
MAYBE_DONE = (
    httpx.codes.BAD_GATEWAY,
    httpx.codes.SERVICE_UNAVAILABLE,
    httpx.codes.GATEWAY_TIMEOUT,
)
# What may be over soon, whoever says so: the service or a proxy before it.
OUTAGES = (*TURNED_AWAY, *MAYBE_DONE)
FIRST_WAIT_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Retries:
    """At most ``times`` after the first, each wait twice as long as the one before; a service that
    says how long to wait (``Retry-After``) is obeyed up to ``most_wait_s``."""

    times: int = 3
    most_wait_s: float = 10.0

    def wait_s(self, call: Call[object], number: int, found: object) -> float | None:
        """Seconds until ``call`` goes again after attempt ``number`` (from 0) brought ``found``, an
        answer or an ``httpx.TransportError``; None where it does not."""
        if number >= self.times or not self._may_again(call, found):
            return None
        wait_s: float = FIRST_WAIT_S * 2**number * random.uniform(1.0, 1.5)
        if isinstance(found, httpx.Response):
            after = found.headers.get("Retry-After", "")
            wait_s = float(after) if after.isdecimal() else wait_s
        return min(wait_s, self.most_wait_s)

    def _may_again(self, call: Call[object], found: object) -> bool:
        if isinstance(found, httpx.Response):
            is_safe = call.is_repeatable and found.status_code in MAYBE_DONE
            return is_safe or found.status_code in TURNED_AWAY
        return call.is_repeatable or isinstance(found, httpx.ConnectError | httpx.ConnectTimeout)
