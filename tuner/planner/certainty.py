"""The simulations that P(SLA met) of a plan's settings rests on.

Three runs of the asked requests (steps as the model says, slower, faster) show how metrics follow
step times. A fourth, in which only steps with prompts are slower, shows which steps they follow.
Then come other draws of the same traffic, each at a load that may differ a little from the asked
one, with steps as slow as a recommendation has to bear: there the draws decide. Draws are the same
for all candidates, and runs the same whatever the bounds are, so that a tighter bound is never
likelier to be met.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist

from engine.spec.measurement import Fidelity
from engine.spec.settings import Settings
from policies.points import INTERVAL_Z, OperatingPoint
from policies.runs import Runs, SimulatedRun
from policies.verdict import MIN_CHANCE
from tuner.described.document import estimates_of
from tuner.described.step_error import StepError, step_error
from tuner.planner.pool import Workers
from tuner.planner.question import Question
from tuner.planner.run_cache import CachedRun, RunKey
from tuner.workload.redraw import redraw
from tuner.workload.workload import Workload

# Draws beside the asked one.
NUM_DRAWS = 4
# The load may be off by this much, either way, in 9 of 10 cases.
LOAD_OFF = 0.05
# How heavy each draw's load is, in standard errors: the middles of as many equal shares.
_LOADS = tuple(NormalDist().inv_cdf(share) for share in (0.625, 0.125, 0.875, 0.375))
# How slow the draws' steps are, in standard errors.
AT = NormalDist().inv_cdf(MIN_CHANCE)
# Beyond this no draw turns the answer.
CLEAR_ROOM = 2.5
# With fewer requests than this, draws differ so much that nothing is clear.
FEW_REQUESTS = 2000

Task = tuple[Settings, RunKey]


def with_runs(
    workers: Workers, question: Question, points: Sequence[OperatingPoint]
) -> dict[Settings, OperatingPoint]:
    """The points with the runs that their chances go by, and intervals from slow and quick steps.

    Their own numbers are from the asked requests, with steps as the model says.
    """
    evidence = _Evidence(workers, question, points)
    settings = [point.settings for point in points]
    evidence.add(settings, [_RunKind(slowness=INTERVAL_Z), _RunKind(slowness=-INTERVAL_Z)])
    unclear = [s for s in settings if evidence.is_unclear(s)]
    apart = [s for s in unclear if evidence.errors[s].correlation < 1]
    evidence.add(apart, [_RunKind(slowness=INTERVAL_Z, prompts_alone=True)])
    draws = [_RunKind(slowness=AT, draw=number) for number in range(1, NUM_DRAWS + 1)]
    if question.only_decides:
        for index, draw in enumerate(draws):
            unclear = [s for s in unclear if evidence.may_do(s, unseen=NUM_DRAWS - index)]
            evidence.add(unclear, [draw])
    else:
        evidence.add(unclear, draws)
    return {point.settings: _point(point, evidence.runs(point.settings)) for point in points}


@dataclass(frozen=True, kw_only=True)
class _RunKind:
    """Which run of some settings, in the words of :class:`policies.runs.SimulatedRun`."""

    slowness: float
    draw: int = 0
    prompts_alone: bool = False

    def key(self, error: StepError) -> RunKey:
        scale = error.of_prompts if self.prompts_alone else error.scale
        return RunKey(scale=scale(self.slowness), draw=self.draw)

    def run(self, metrics: dict[str, float]) -> SimulatedRun:
        return SimulatedRun(
            slowness=self.slowness,
            draw=self.draw,
            metrics=metrics,
            prompts_alone=self.prompts_alone,
        )


class _Evidence:
    """The runs so far of each point's settings: at first only the point's own."""

    def __init__(
        self, workers: Workers, question: Question, points: Sequence[OperatingPoint]
    ) -> None:
        self._workers, self._question = workers, question
        self.errors = {p.settings: error_of(question, p) for p in points}
        self._found = {p.settings: [_as_run(p)] for p in points}

    def add(self, settings: Sequence[Settings], kinds: Sequence[_RunKind]) -> None:
        """Simulate every kind of run of all ``settings``."""
        wanted = [(s, kind) for s in settings for kind in kinds]
        tasks = [(s, kind.key(self.errors[s])) for s, kind in wanted]
        answers = simulate_all(self._workers, self._question, tasks)
        for (s, kind), metrics in zip(wanted, answers, strict=True):
            self._found[s].append(kind.run(metrics))

    def runs(self, settings: Settings) -> Runs:
        """All of them, with what is known of the steps' error."""
        error = self.errors[settings]
        prompts, decodes = error.mean_slowness
        return Runs(
            tuple(self._found[settings]),
            correlation=error.correlation,
            prompts_mean=prompts,
            decodes_mean=decodes,
            spreads=error.spreads,
        )

    def is_unclear(self, settings: Settings) -> bool:
        """Whether other draws may turn the answer."""
        if self.errors[settings].is_exact:
            return False
        room = Runs(tuple(self._found[settings])).room(0, self._question.sla.per_run)
        is_few = len(self._question.workload) < FEW_REQUESTS
        return room > -CLEAR_ROOM and (room < CLEAR_ROOM or is_few)

    def may_do(self, settings: Settings, *, unseen: int) -> bool:
        """Whether the chance may still be the least one, if ``unseen`` draws have all room there
        is."""
        per_run = self._question.sla.per_run
        return self.runs(settings).chance(per_run, unseen=unseen) >= MIN_CHANCE


def error_of(question: Question, point: OperatingPoint) -> StepError:
    """How far the steps of ``point`` may be off, at the load that its run had."""
    metrics = {key: estimate.value for key, estimate in point.metrics.items()}
    return step_error(question.node, point.settings, question.workload, metrics)


def _draw(question: Question, number: int) -> Workload:
    """Draw ``number`` of the traffic at its load, made once a process; 0 is what was asked."""
    if number == 0:
        return question.workload
    draws = question.cache.draws
    if number not in draws:
        load = math.exp(_LOADS[number - 1] * math.log1p(LOAD_OFF) / INTERVAL_Z)
        draws[number] = redraw(question.workload, number, load=load)
    return draws[number]


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
    """Metrics of the tasks' runs: whole runs of the draws that their keys name. Other processes are
    asked only for runs that are not known."""
    whole = [(settings, key, _draw(question, key.draw)) for settings, key in tasks]
    new = [
        (settings, key) for settings, key, load in whole if not question.knows(settings, key, load)
    ]
    # The node itself, not a copy: in this process its step times are made once for all runs.
    for (settings, key), run in zip(new, workers.map(partial(_run, question), new), strict=True):
        question.cache.add(settings, key, run)
    return [question.flat(*task) for task in whole]


def _run(question: Question, task: Task) -> CachedRun:
    settings, key = task
    return question.run(settings, key, _draw(question, key.draw))
