"""The simulations that P(SLA met) of a plan's settings rests on.

Three runs of the asked requests (steps as the model says, slower, faster) show how metrics follow
step times, and a fourth, in which only steps with prompts are slower, whose they follow. Then come
other draws of the same traffic, each at a load that may differ a little from what was asked, with
steps as slow as what may be recommended has to bear: there the draws decide. Draws are the same for
all candidates, and runs the same whatever the bounds are, so that a tighter bound is never likelier
to be met.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from statistics import NormalDist

from engine.spec.measurement import Fidelity
from engine.spec.settings import Settings
from policies.points import INTERVAL_Z, OperatingPoint
from policies.runs import Runs, SimulatedRun
from policies.sla import Sla
from policies.verdict import MIN_CHANCE
from tuner.described.document import estimates_of
from tuner.described.step_error import StepError, step_error
from tuner.planner.pool import Workers
from tuner.planner.question import Question
from tuner.planner.seen import RunKey, SeenRun
from tuner.workload.redraw import redraw
from tuner.workload.workload import Workload

# Draws beside the asked one.
NUM_DRAWS = 4
# The load may be off by that much, either way, in 9 of 10 cases.
LOAD_OFF = 0.05
# How heavy each draw's load is, in standard errors: the middles of as many equal shares.
_LOADS = tuple(NormalDist().inv_cdf(share) for share in (0.625, 0.125, 0.875, 0.375))
# How slow their steps are, in standard errors.
AT = NormalDist().inv_cdf(MIN_CHANCE)
# Beyond this no draw turns the answer.
CLEAR_ROOM = 2.5
# Fewer requests than that differ so much from draw to draw that nothing is clear.
FEW_REQUESTS = 2000


Task = tuple[Settings, RunKey]


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
    tasks = [(s, RunKey(scale=errors[s].scale(slowness))) for s, slowness in wanted]
    flats = simulate_all(workers, question, tasks)
    for (settings, slowness), flat in zip(wanted, flats, strict=True):
        found[settings].append(SimulatedRun(slowness=slowness, draw=0, metrics=flat))
    rooms = {s: Runs(tuple(runs)).room(0, question.sla.per_run) for s, runs in found.items()}
    unclear = [s for s in found if not errors[s].is_exact and _is_unclear(rooms[s], load)]
    apart = [s for s in unclear if errors[s].correlation < 1]
    tasks = [(s, RunKey(scale=errors[s].of_prompts(INTERVAL_Z))) for s in apart]
    for settings, flat in zip(apart, simulate_all(workers, question, tasks), strict=True):
        found[settings].append(
            SimulatedRun(slowness=INTERVAL_Z, draw=0, metrics=flat, prompts_alone=True)
        )
    numbers = range(1, NUM_DRAWS + 1)
    for part in [[number] for number in numbers] if question.only_decides else [numbers]:
        if question.only_decides:
            left = NUM_DRAWS - part[0] + 1
            unclear = [
                s for s in unclear if _may_do(_runs(found[s], errors[s]), question.sla, left)
            ]
        asked = [(s, number) for s in unclear for number in part]
        tasks = [(s, RunKey(scale=errors[s].scale(AT), draw=number)) for s, number in asked]
        flats = simulate_all(workers, question, tasks)
        for (settings, number), flat in zip(asked, flats, strict=True):
            found[settings].append(SimulatedRun(slowness=AT, draw=number, metrics=flat))
    return {p.settings: _point(p, _runs(found[p.settings], errors[p.settings])) for p in points}


def _runs(runs: Sequence[SimulatedRun], error: StepError) -> Runs:
    prompts, decodes = error.mean_slowness
    return Runs(
        tuple(runs),
        certainty=error.certainty,
        correlation=error.correlation,
        prompts_mean=prompts,
        decodes_mean=decodes,
    )


def error_of(question: Question, point: OperatingPoint) -> StepError:
    """How far the steps of ``point`` may be off, at the load that its run had."""
    metrics = {key: estimate.value for key, estimate in point.metrics.items()}
    return step_error(question.node, point.settings, question.workload, metrics)


def _draw(question: Question, number: int) -> Workload:
    """Draw ``number`` of the traffic at its load, made once a process; 0 is what was asked."""
    if number == 0:
        return question.workload
    draws = question.seen.draws
    if number not in draws:
        load = math.exp(_LOADS[number - 1] * math.log1p(LOAD_OFF) / INTERVAL_Z)
        draws[number] = redraw(question.workload, number, load=load)
    return draws[number]


def _is_unclear(room: float, load: Workload) -> bool:
    return room > -CLEAR_ROOM and (room < CLEAR_ROOM or len(load) < FEW_REQUESTS)


def _may_do(runs: Runs, sla: Sla, unseen: int) -> bool:
    """Whether the chance may still be the least one, if ``unseen`` draws have all room there is."""
    return runs.unbounded_chance(sla.per_run, unseen=unseen) >= MIN_CHANCE


def _as_run(point: OperatingPoint) -> SimulatedRun:
    metrics = {key: estimate.value for key, estimate in point.metrics.items()}
    return SimulatedRun(slowness=0.0, draw=0, metrics=metrics)


def _point(point: OperatingPoint, runs: Runs) -> OperatingPoint:
    asked = [dict(run.metrics) for run in runs.runs if run.draw == 0 and not run.prompts_alone]
    return OperatingPoint(
        settings=point.settings,
        fidelity=Fidelity.SIMULATED,
        metrics=estimates_of(asked),
        runs=runs,
    )


def simulate_all(
    workers: Workers, question: Question, tasks: Sequence[Task]
) -> list[dict[str, float]]:
    """Metrics of the tasks' runs, whole ones of the draws that their keys name; other processes are
    asked only for those that are not known."""
    whole = [(settings, key, _draw(question, key.draw)) for settings, key in tasks]
    new = [
        (settings, key) for settings, key, load in whole if not question.knows(settings, key, load)
    ]
    # The node itself, not a copy: in this process its step times are made once for all runs.
    for (settings, key), run in zip(new, workers.map(partial(_run, question), new), strict=True):
        question.seen.learn(settings, key, run)
    return [question.flat(*task) for task in whole]


def _run(question: Question, task: Task) -> SeenRun:
    settings, key = task
    return question.run(settings, key, _draw(question, key.draw))
