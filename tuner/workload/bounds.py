"""What a workload may be at most, and the range of every word of a SPEC.

The bounds are wide of anything served, and narrow enough that a workload fits into memory and
every sum over it into a float.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tuner.spec.errors import WorkloadError

# Bounds of a workload in memory: its requests, the tokens of all of them, and those of one prompt
# or answer. A million requests take about half a gigabyte.
MAX_REQUESTS = 2_000_000
MAX_WORKLOAD_TOKENS = 100_000_000_000
MAX_LENGTH_TOKENS = 10_000_000
# Arrivals a process may draw before its cuts; they are plain columns, 8 bytes each.
MAX_DRAWN = 10_000_000
MAX_SPAN_S = 1e9
MAX_TRACE_BYTES = 2 << 30
# Bursts and silences of a process, each a Python object.
MAX_SEGMENTS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A closed range; ``is_whole`` allows whole numbers only."""

    low: float
    high: float
    is_whole: bool = False

    def check(self, spec: str, word: str, raw: str) -> float:
        """The number in ``raw``.

        Raises:
            WorkloadError: no number, or one outside the range, named with the range.
        """
        try:
            value = float(raw)
        except ValueError as error:
            raise WorkloadError(f"workload {spec!r}: {word}={raw!r} is not a number") from error
        if not self.low <= value <= self.high:
            if value <= 0 and self.low >= 0:
                lowest = "at least 0" if self.low == 0 else "above 0"
                raise WorkloadError(f"workload {spec!r}: {word}={raw} must be {lowest}")
            shown = "above 0 and finite, " if not math.isfinite(value) else ""
            raise WorkloadError(
                f"workload {spec!r}: {word}={raw} must be {shown}at least {self.low:g} and at most "
                f"{self.high:g}"
            )
        if self.is_whole and value != int(value):
            raise WorkloadError(f"workload {spec!r}: {word}={raw} is not a whole number")
        return value


_RATE = Bound(low=1e-6, high=1e7)
_LENGTH = Bound(low=1e-6, high=MAX_LENGTH_TOKENS)
_SPREAD = Bound(low=0, high=100)
_SECONDS = Bound(low=1e-6, high=1e8)
_SINCE = Bound(low=0, high=1e8)
_FACTOR = Bound(low=1e-6, high=1e6)
_MAX_LENGTH = Bound(low=1, high=MAX_LENGTH_TOKENS, is_whole=True)

WORD_BOUNDS = {
    "rate": _RATE,
    "to": _RATE,
    "peak": _RATE,
    "cv": Bound(low=0.01, high=100),
    "input": _LENGTH,
    "output": _LENGTH,
    "input_cv": _SPREAD,
    "output_cv": _SPREAD,
    "at": _SINCE,
    "on_s": _SECONDS,
    "off_s": _SECONDS,
    "concurrency": Bound(low=1, high=1_000_000, is_whole=True),
    "stagger_s": _SINCE,
    "start": _SINCE,
    "seconds": _SECONDS,
    "requests": Bound(low=1, high=MAX_REQUESTS, is_whole=True),
    "keep": Bound(low=1e-9, high=1),
    "scale": _FACTOR,
    "input_scale": _FACTOR,
    "output_scale": _FACTOR,
    "max_input": _MAX_LENGTH,
    "max_output": _MAX_LENGTH,
}


def check_drawn(spec: str, expected: float) -> None:
    """Raises WorkloadError where a process would draw more arrivals than fit."""
    if not expected <= MAX_DRAWN:
        raise WorkloadError(
            f"workload {spec!r}: about {expected:.3g} arrivals; at most {MAX_DRAWN} are drawn, so "
            "take a lower rate, or fewer seconds="
        )


def check_size(spec: str, *, requests: float, tokens: float) -> None:
    """Raises WorkloadError where more is left after the cuts than a workload may hold."""
    if not requests <= MAX_REQUESTS:
        raise WorkloadError(
            f"workload {spec!r}: {requests:.10g} requests are left; at most {MAX_REQUESTS} may be, "
            "so cut it with seconds=, requests= or keep="
        )
    if not tokens <= MAX_WORKLOAD_TOKENS:
        raise WorkloadError(
            f"workload {spec!r}: {tokens:.10g} tokens in all; at most {MAX_WORKLOAD_TOKENS} may "
            "be, so cut it with requests=, max_input= or max_output="
        )
