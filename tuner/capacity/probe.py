"""One point of a boundary search: settings under a workload at one rate, in one draw."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from engine.spec.measurement import Fidelity, Measurement
from engine.spec.settings import Settings
from policies.constraint import Constraint
from policies.points import Estimate, OperatingPoint
from policies.report import flat_metrics
from policies.sla import Sla
from policies.verdict import is_dependable, meets_in_run
from tuner.described.document import estimates_of
from tuner.described.node import Node
from tuner.simulation.simulate import OnProgress, SimulationResult
from tuner.workload.stretch import stretch
from tuner.workload.workload import Workload


class Run(Protocol):
    """What a run must tell."""

    @property
    def measurement(self) -> Measurement: ...


# A run of a workload with all step times multiplied by a number.
RunOn = Callable[[Workload, float, OnProgress], Run]
# With fewer requests than this, a p95 says little.
LEAST_REQUESTS = 200


@dataclass(frozen=True, kw_only=True)
class CapacityQuestion:
    """The question: which load of ``workload`` ``settings``, run by ``run_on``, carry within
    ``sla``.

    ``interval`` is the 90 % half width of log(true / simulated) step times.
    """

    settings: Settings
    run_on: RunOn
    workload: Workload
    sla: Sla
    interval: float

    @classmethod
    def of_node(
        cls, node: Node, settings: Settings, workload: Workload, sla: Sla, *, seed: int
    ) -> CapacityQuestion:
        """What ``settings`` on the node carry, by simulation."""

        def run_on(load: Workload, step_scale: float, on_progress: OnProgress) -> SimulationResult:
            return node.simulate(
                settings, load, seed=seed, step_scale=step_scale, on_progress=on_progress
            )

        return cls(
            settings=settings, run_on=run_on, workload=workload, sla=sla, interval=node.interval
        )


@dataclass(frozen=True, kw_only=True)
class Probe:
    """How the settings stand at ``factor`` times the workload's load, in draw number ``draw``."""

    factor: float
    draw: int
    num_requests: int
    point: OperatingPoint
    is_dependable: bool
    chance: float

    def margin(self, constraint: Constraint) -> float:
        """Share of the budget left with slow steps (those that 90 of 100 runs do not exceed)."""
        estimate = self.point.metrics.get(constraint.key)
        return -math.inf if estimate is None else constraint.margin(_bad_end(constraint, estimate))

    @property
    def attainment(self) -> float:
        """Share of requests that meet the latencies each is held to."""
        found = self.point.metrics.get("attainment")
        return 0.0 if found is None else found.value


def probe(asked: CapacityQuestion, factor: float, draw: int) -> Probe:
    """Simulate one draw at one rate."""
    load = load_at(asked, factor, draw)
    point = point_under(asked, load)
    return Probe(
        factor=factor,
        draw=draw,
        num_requests=len(load),
        point=point,
        is_dependable=is_dependable(point, asked.sla),
        chance=point.probability(asked.sla) if meets_in_run(point, asked.sla) else 0.0,
    )


def point_under(asked: CapacityQuestion, load: Workload) -> OperatingPoint:
    """How the settings stand under ``load``. The interval comes from a second run with slower
    steps, which a run that misses the SLA does not need: it has no chance of ``MIN_CHANCE``."""
    value = _flat(asked, load, 1.0)
    point = _point(asked.settings, estimates_of([value]))
    if meets_in_run(point, asked.sla) and asked.interval > 0:
        slow = _flat(asked, load, math.exp(asked.interval))
        point = _point(asked.settings, estimates_of([value, slow]))
    return point


def load_at(asked: CapacityQuestion, factor: float, draw: int) -> Workload:
    """The workload at ``factor`` times its load."""
    least = min(LEAST_REQUESTS, len(asked.workload))
    return stretch(asked.workload, factor, seed=draw, least=least)


def _flat(asked: CapacityQuestion, load: Workload, step_scale: float) -> dict[str, float]:
    result = asked.run_on(load, step_scale, lambda *_: None)
    return flat_metrics(result.measurement, asked.sla)


def _point(settings: Settings, metrics: dict[str, Estimate]) -> OperatingPoint:
    return OperatingPoint(settings=settings, fidelity=Fidelity.SIMULATED, metrics=metrics)


def _bad_end(constraint: Constraint, estimate: Estimate) -> float:
    return estimate.high if constraint.metric.is_latency else estimate.low
