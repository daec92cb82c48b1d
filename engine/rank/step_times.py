"""When the parts of a step began and ended on its rank, read without holding the step up."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from engine.kernels.cuda import new_event
from engine.parallel.mesh import TimeReading
from engine.spec.steps import StepResult

Mark = float | torch.cuda.Event


def mark(device: torch.device) -> Mark:
    """Now, or on CUDA the moment at which the device reaches this point."""
    if device.type != "cuda":
        return time.perf_counter()
    event = new_event(is_timed=True)
    event.record(torch.cuda.current_stream(device))
    return event


def seconds_between(start: Mark, end: Mark) -> float:
    """Seconds from ``start`` to ``end``; on CUDA the device must have come to both."""
    if isinstance(start, torch.cuda.Event):
        assert isinstance(end, torch.cuda.Event), "marks of one step are of one kind"
        return float(start.elapsed_time(end)) * 1e-3
    assert isinstance(end, float), "marks of one step are of one kind"
    return end - start


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """One step on one rank: ``begun``, its inputs ``ready``, forward pass ``passed``, ``sampled``.

    ``prepare_s`` went before it, perhaps during the step before; ``waits`` are its collectives.
    """

    prepare_s: float
    begun: Mark
    ready: Mark
    passed: Mark
    sampled: Mark
    waits: list[TimeReading]

    def fill_in(self, result: StepResult) -> None:
        """Write the parts into ``result``."""
        exposed_s = seconds_between(self.begun, self.ready)
        pass_s = seconds_between(self.ready, self.passed)
        result.communication_s = sum(reading.seconds for reading in self.waits)
        result.input_s = self.prepare_s + exposed_s
        result.input_exposed_s = exposed_s
        result.forward_s = max(0.0, pass_s - result.communication_s)
        result.sample_s = seconds_between(self.passed, self.sampled)
