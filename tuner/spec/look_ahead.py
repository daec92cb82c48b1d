"""How far ahead of its ranks a serving system decides."""

from __future__ import annotations

from enum import StrEnum


class LookAhead(StrEnum):
    """When a step is scheduled, compared with the one before it.

    ``NONE``: when that has ended. ``AT_START``: when that starts, as asynchronous scheduling in
    vLLM does, so that a request which is seen during a step misses the next one too.
    ``BEFORE_END``: shortly before that is expected to end, as this project's engine does with
    overlap.
    """

    NONE = "none"
    AT_START = "at_start"
    BEFORE_END = "before_end"
