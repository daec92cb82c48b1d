"""What a steering sees of a simulated run: its newest windows, as the live loops get them."""

from __future__ import annotations

from collections import deque

from engine.spec.measurement import Fidelity
from policies.observation import Observation, TrafficWindow, join_windows
from policies.sla import Sla
from tuner.simulation.steering import RunView


class SeenWindows(deque[TrafficWindow]):
    """The last ``num_kept`` windows of a run, from one look to the next."""

    def __init__(self, num_kept: int) -> None:
        super().__init__(maxlen=num_kept)
        self.looked_s = 0.0
        self._num_inside = 0

    def look(self, now_s: float, view: RunView) -> TrafficWindow:
        """Keep the window since the last look; arrivals are counted as an engine's agent does."""
        ended = tuple(view.timings_since(self.looked_s))
        inside = view.num_running + view.num_waiting + view.num_refused
        window = TrafficWindow(
            window_s=now_s - self.looked_s,
            num_arrived=max(0, inside - self._num_inside + len(ended)),
            timings=ended,
        )
        self.append(window)
        self.looked_s, self._num_inside = now_s, inside
        return window

    def observe(self, sla: Sla | None) -> Observation | None:
        """All of them together, judged by ``sla``."""
        return join_windows(self, sla, age_s=0.0, fidelity=Fidelity.SIMULATED)
