"""Requests to an engine on paced ranks, whose steps all take the same time."""

from __future__ import annotations

import threading
import time

from engine.engine import Engine
from engine.spec.plan import ParallelPlan
from engine.spec.request import FinishReason, Request, RequestOutput, SamplingParams
from engine.spec.steps import StepShape

STEP_S = 0.002


class ConstantTimer:
    """Every stage of every step takes the same time."""

    def __init__(self, plan: ParallelPlan) -> None:
        self._stages = (STEP_S,) * plan.pp

    def stage_seconds(self, shape: StepShape) -> tuple[float, ...]:
        return self._stages

    def host_seconds(self, shape: StepShape) -> float:
        return 0.0


class Collector:
    """Gathers a request's outputs and tells when it ended."""

    def __init__(self) -> None:
        self.outputs: list[RequestOutput] = []
        self.is_done = threading.Event()

    def __call__(self, output: RequestOutput) -> None:
        self.outputs.append(output)
        if output.is_finished:
            self.is_done.set()

    def wait(self) -> Collector:
        assert self.is_done.wait(60), "the request never ended"
        return self

    @property
    def reason(self) -> FinishReason | None:
        return self.outputs[-1].finish_reason

    @property
    def token_ids(self) -> list[int]:
        return [i for output in self.outputs for i in output.token_ids]


def submit(
    engine: Engine,
    name: str,
    *,
    prompt: int = 20,
    tokens: int = 10,
    priority: int = 0,
    within_s: float | None = None,
) -> Collector:
    collector = Collector()
    now_s = time.monotonic()
    request = Request(
        request_id=name,
        prompt_ids=tuple(range(1, prompt + 1)),
        sampling=SamplingParams(max_tokens=tokens),
        arrival_s=now_s,
        priority=priority,
        deadline_s=None if within_s is None else now_s + within_s,
    )
    engine.submit(request, collector)
    return collector
