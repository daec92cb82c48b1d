"""The host and the pipeline stages of one replica in virtual time."""

from __future__ import annotations

from engine.executors.stages import Stages


class Pipe:
    """``host_free_s`` is since when the host is free, ``stages`` since when each stage is."""

    __slots__ = ("host_free_s", "stages")

    def __init__(self, depth: int) -> None:
        self.host_free_s = 0.0
        self.stages = Stages([0.0] * depth)

    def prepare(self, now_s: float, host_s: float) -> float:
        """Let the host work ``host_s`` on a step from ``now_s`` on; returns when the step is
        ready."""
        self.host_free_s = max(now_s, self.host_free_s) + host_s
        return self.host_free_s

    def pass_to(self, end_s: float) -> None:
        """Host and stages were busy with other steps until ``end_s``."""
        self.host_free_s = end_s
        self.stages.free_s = [end_s] * len(self.stages.free_s)
