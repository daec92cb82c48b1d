"""How many requests an engine lets in, as a setting."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from engine.spec.errors import PolicyError

# What may come at once unless somebody says otherwise: this many seconds of the rate.
BURST_S = 2.0
# With less, half of it could not be kept for the highest priority.
LEAST_BURST = 2
MOST_RATE_RPS = 1e9
MOST_BURST = 2**31 - 1


class Refusal(StrEnum):
    """Why a request that could have run was turned away."""

    ADMISSION = "admission"
    QUEUE_FULL = "queue_full"


@dataclass(frozen=True, kw_only=True)
class Admission:
    """The most requests that are let in: ``rate_rps`` per second, and ``burst_requests`` at once
    (None: two seconds' worth).

    Raises:
        PolicyError: a rate that is not above 0, or a burst below 2.
    """

    rate_rps: float
    burst_requests: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.rate_rps <= MOST_RATE_RPS:
            raise PolicyError(
                f"/admission/rate_rps: {self.rate_rps} must be above 0 and at most "
                f"{MOST_RATE_RPS:g}, or left out"
            )
        burst = self.burst_requests
        if burst is not None and not LEAST_BURST <= burst <= MOST_BURST:
            raise PolicyError(
                f"/admission/burst_requests: {burst} must be at least {LEAST_BURST} and at most "
                f"{MOST_BURST}, or left out"
            )

    @property
    def burst(self) -> int:
        """Requests that may come at once after a pause."""
        if self.burst_requests is not None:
            return self.burst_requests
        return max(LEAST_BURST, math.ceil(self.rate_rps * BURST_S))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Admission | None:
        """Read what :meth:`to_json` wrote, leaving out nulls; None if nothing is left.

        Raises:
            PolicyError: a burst without a rate, or a value that cannot be.
        """
        if not document:
            return None
        if "rate_rps" not in document:
            raise PolicyError(
                "/admission/rate_rps: missing beside burst_requests; give it, or null for both"
            )
        return cls(**document)


ADMISSION_KNOBS = tuple(f.name for f in fields(Admission))
