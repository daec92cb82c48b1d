"""After a clock was set back, kept times lie ahead of it.

Dwell, cool-down and caps count from such times. Left as they are, a clock set back by an hour would
hold everything for an hour. So all of them are moved back with it, and what was seconds ago still
is.
"""

from __future__ import annotations


def ahead_s(now_s: float, *last_s: float | None) -> float:
    """How far the latest of these past times lies ahead of now."""
    return max([0.0, *(at_s - now_s for at_s in last_s if at_s is not None)])


def back(at_s: float | None, by_s: float) -> float | None:
    """A time moved back; one that never was stays so."""
    return None if at_s is None else at_s - by_s
