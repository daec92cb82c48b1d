"""The simulations that P(SLA met) of a plan's settings rests on.

Three runs of the asked requests (steps as the model says, slower, faster) show how metrics follow
step times. Then come other draws of the same traffic, each at a load that may differ a little from
what was asked, with steps as slow as the first draw just bears: there the draws decide. Draws are
the same for all candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from statistics import NormalDist

from engine.spec.measurement import Fidelity
from engine.spec.settings import Settings
from policies.points import INTERVAL_Z, OperatingPoint
from policies.report import flat_metrics
from policies.runs import Runs, SimulatedRun
from tuner.described.document import estimates_of
from tuner.described.step_error import StepError, step_error
from tuner.planner.explore import Question
from tuner.planner.pool import Workers
from tuner.step_model.timer import StepScale
from tuner.workload.redraw import redraw
from tuner.workload.workload import Workload

# Draws beside the asked one.
NUM_DRAWS = 4
# The load may be off by that much, either way, in 9 of 10 cases.
LOAD_OFF = 0.05
# How heavy each draw's load is, in standard errors: the middles of as many equal shares.
_LOADS = tuple(NormalDist().inv_cdf(share) for share in (0.625, 0.125, 0.875, 0.375))
# Beyond this no draw turns the answer.
CLEAR_ROOM = 2.5
# Fewer requests than that differ so much from draw to draw that nothing is clear.
FEW_REQUESTS = 2000


Task = tuple[Settings, StepScale, Workload]


def with_runs(
    workers: Workers, question: Question, points: Sequence[OperatingPoint]
) -> dict[Settings, OperatingPoint]:
    """The points with the runs that their chances go by, and intervals from slow and quick steps.

    Their own numbers are from the asked requests, with steps as the model says.
    """
    errors = {p.settings: error_of(question, p) for p in points}
    load = question.workload
    found = {p.settings: [_as_run(p)] for p in points}
    wanted = [(p.settings, slowness) for p in points for slowness in (INTERVAL_Z, -INTERVAL_Z)]
    tasks = [(s, errors[s].scale(slowness), load) for s, slowness in wanted]
    for (settings, slowness), flat in zip(wanted, _simulate(workers, question, tasks), strict=True):
        found[settings].append(SimulatedRun(slowness=slowness, draw=0, metrics=flat))
    draws = [redraw(load, number + 1, load=_load(number)) for number in range(NUM_DRAWS)]
    rooms = {s: Runs(tuple(runs)).room(0, question.sla.per_run) for s, runs in found.items()}
    # An even number of standard errors, so that a little more room does not change what is run.
    at = {s: round(max(-INTERVAL_Z, min(INTERVAL_Z, room)), 1) for s, room in rooms.items()}
    unclear = [s for s in found if not errors[s].is_exact and _is_unclear(rooms[s], load)]
    tasks = [(s, errors[s].scale(at[s]), draw) for s in unclear for draw in draws]
    flats = iter(_simulate(workers, question, tasks))
    for settings in unclear:
        found[settings] += [
            SimulatedRun(slowness=at[settings], draw=number + 1, metrics=next(flats))
            for number in range(NUM_DRAWS)
        ]
    return {p.settings: _point(p, tuple(found[p.settings])) for p in points}


def error_of(question: Question, point: OperatingPoint) -> StepError:
    """How far the steps of ``point`` may be off, at the load that its run had."""
    metrics = {key: estimate.value for key, estimate in point.metrics.items()}
    return step_error(question.node, point.settings, question.workload, metrics)


def _load(number: int) -> float:
    return math.exp(_LOADS[number] * math.log1p(LOAD_OFF) / INTERVAL_Z)


def _is_unclear(room: float, load: Workload) -> bool:
    return room > -CLEAR_ROOM and (room < CLEAR_ROOM or len(load) < FEW_REQUESTS)


def _as_run(point: OperatingPoint) -> SimulatedRun:
    metrics = {key: estimate.value for key, estimate in point.metrics.items()}
    return SimulatedRun(slowness=0.0, draw=0, metrics=metrics)


def _point(point: OperatingPoint, runs: tuple[SimulatedRun, ...]) -> OperatingPoint:
    asked = [dict(run.metrics) for run in runs if run.draw == 0]
    return OperatingPoint(
        settings=point.settings,
        fidelity=Fidelity.SIMULATED,
        metrics=estimates_of(asked),
        runs=Runs(runs),
    )


def _simulate(
    workers: Workers, question: Question, tasks: Sequence[Task]
) -> list[dict[str, float]]:
    return workers.map(partial(_flat, question), tasks)


def _flat(question: Question, task: Task) -> dict[str, float]:
    settings, scale, load = task
    # The node itself, not a copy: in this process its step times are made once for all runs.
    result = question.node.simulate(settings, load, seed=question.seed, step_scale=scale)
    return flat_metrics(result.measurement, question.sla)
