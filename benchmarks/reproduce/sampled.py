"""Nodes whose steps end with a sampler: of all rows in one place, or of each rank's share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.spec.plan import ParallelPlan
from engine.spec.steps import StepShape
from tuner.backends import ServedTimer
from tuner.described.node import Node
from tuner.hardware.sampling import SamplerSpec, sample_s

# Seconds of sampling on a plan's last stage, by rows.
SampleSeconds = Callable[[ParallelPlan, int], float]


def no_sampling(_plan: ParallelPlan, _rows: int) -> float:
    return 0.0


def predicted_sampling(node: Node, sampler: SamplerSpec) -> SampleSeconds:
    """The tuner's own estimate, without the exchange of logits."""
    device, vocab_size = node.hardware.device, node.model.vocab_size

    def seconds(plan: ParallelPlan, rows: int) -> float:
        return sample_s(device, sampler.rows(rows, plan.stage_size), vocab_size, sampler.kind)

    return seconds


class SampledTimer(ServedTimer):
    """A served plan's times, with the sampler on the last stage."""

    def __init__(self, node: Node, plan: ParallelPlan, sampling: SampleSeconds) -> None:
        super().__init__(node.hardware, node.model, plan, node.precision, node.backend)
        self._sampling, self._sampled_plan = sampling, plan
        self._sampling_s: dict[int, float] = {}

    def stage_seconds(self, shape: StepShape) -> tuple[float, ...]:
        rows = shape.num_sampled
        if rows not in self._sampling_s:
            self._sampling_s[rows] = self._sampling(self._sampled_plan, rows)
        stages = super().stage_seconds(shape)
        return (*stages[:-1], stages[-1] + self._sampling_s[rows])


@dataclass(frozen=True, kw_only=True)
class SampledNode(Node):
    """A node whose steps take ``sampling`` longer."""

    sampling: SampleSeconds = no_sampling

    def timer(self, plan: ParallelPlan) -> ServedTimer:
        if plan not in self._timers:
            self._timers[plan] = SampledTimer(self, plan, self.sampling)
        return self._timers[plan]
