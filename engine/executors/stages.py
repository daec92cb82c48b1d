"""When the stages of a pipeline take a step, and when it leaves the last one; no torch."""

from __future__ import annotations

from collections.abc import Sequence


class Stages:
    """Stages of one replica, each of which holds one step at a time.

    A stage begins a step when its input is there and its last step is done. ``free_s`` says since
    when each stage is free, in seconds of the caller's clock; ``has_run``: a step was sent.
    """

    __slots__ = ("free_s", "has_run")

    def __init__(self, free_s: Sequence[float], *, has_run: bool = False) -> None:
        self.free_s = list(free_s)
        self.has_run = has_run

    def copy(self) -> Stages:
        return Stages(self.free_s, has_run=self.has_run)

    def idle_s(self, ready_s: float) -> float:
        """Seconds that stage 0 waited for a step ready at ``ready_s``; 0 for the first one."""
        return max(0.0, ready_s - self.free_s[0]) if self.has_run else 0.0

    def send(self, ready_s: float, stage_s: Sequence[float]) -> float:
        """Send a step through, ready at ``ready_s``, that keeps stage i busy for ``stage_s[i]``
        seconds; returns the time at which it leaves the last stage.
        """
        free_s = self.free_s
        for stage, seconds in enumerate(stage_s):
            ready_s = max(ready_s, free_s[stage]) + seconds
            free_s[stage] = ready_s
        self.has_run = True
        return ready_s
