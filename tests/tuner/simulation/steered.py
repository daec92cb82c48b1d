"""A stand-in for a simulated run: requests of equal latency at a rate that the test sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from engine.spec.measurement import RequestTiming
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from policies.schedule import LoadBand, Schedule
from tuner.simulation.steering import SettingsChange, Steering

ENVELOPE = Caps(max_num_seqs=256, max_num_batched_tokens=8192)
CALM = Settings(plan=ParallelPlan(tp=2), caps=Caps(max_num_seqs=8, max_num_batched_tokens=512))
BUSY = replace(CALM, caps=Caps(max_num_seqs=64, max_num_batched_tokens=2048))


def schedule(*bands: tuple[float, float, Settings], plan: ParallelPlan | None = None) -> Schedule:
    """Bands (low, high, settings) at one mix of 100 tokens in and 20 out."""
    return Schedule(
        bands=tuple(
            LoadBand(
                rate_rps_low=low,
                rate_rps_high=high,
                mean_input_tokens=100.0,
                mean_output_tokens=20.0,
                settings=replace(s, plan=plan or s.plan),
                headroom=0.5,
            )
            for low, high, s in bands
        ),
    )


@dataclass
class FakeRun:
    """A :class:`.RunView` whose requests take ``latency_s(settings, rate)``."""

    rate_rps: Callable[[float], float]
    latency_s: Callable[[Settings, float], float] = lambda settings, rate: 0.5
    settings: Settings = CALM
    envelope: Caps = ENVELOPE
    is_reshaping: bool = False
    num_waiting: int = 0
    num_refused: int = 0
    kv_usage: tuple[float, ...] = (0.0,)
    changes: list[tuple[float, SettingsChange]] = field(default_factory=list)
    _arrived: list[tuple[float, float]] = field(default_factory=list)
    _now_s: float = 0.0

    @property
    def held_plan(self) -> ParallelPlan:
        return self.settings.plan

    @property
    def num_running(self) -> int:
        return sum(start <= self._now_s < end for start, end in self._arrived)

    def timings_since(self, since_s: float) -> Sequence[RequestTiming]:
        ended = [(end, start) for start, end in self._arrived if since_s < end <= self._now_s]
        return [
            RequestTiming(
                scheduled_s=start,
                sent_s=start,
                token_s=tuple(start + (end - start) * (i + 1) / 20 for i in range(20)),
                prompt_tokens=100,
            )
            for end, start in sorted(ended)
        ]

    def steer(self, steering: Steering, until_s: float) -> None:
        """Ask as the simulator does; changes take effect on requests that come later."""
        next_s = steering.first_s()
        while next_s <= until_s:
            self._arrive_until(next_s)
            turn = steering.ask(next_s, self)
            if turn.change is not None:
                self.changes.append((next_s, turn.change))
                self.settings = turn.change.settings
            assert turn.next_s > next_s, "a steering must let time pass"
            next_s = turn.next_s

    def _arrive_until(self, now_s: float) -> None:
        at_s = self._arrived[-1][0] if self._arrived else 0.0
        while (at_s := at_s + 1 / self.rate_rps(at_s)) <= now_s:
            latency_s = self.latency_s(self.settings, self.rate_rps(at_s))
            self._arrived.append((at_s, at_s + latency_s))
        self._now_s = now_s
