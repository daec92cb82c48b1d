"""Simulation: the engine's own scheduler, a step timer and a virtual clock.

Imports no torch, scikit-learn or pandas. The loop is the live engine's: fill the pipeline with
steps, wait for the oldest, take its tokens in, repeat. Stretches in which only lengths change are
committed in bulk.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from engine.spec.settings import Settings
from tuner.simulation.compiled import find_compiled_run
from tuner.simulation.log import RunCounts
from tuner.simulation.run import OnProgress, Run, SimulationResult, no_progress
from tuner.simulation.setup import Ranks, SimulatedEngine, ranks_of_one
from tuner.simulation.steering import Steering
from tuner.workload.workload import Workload

__all__ = [
    "OnProgress",
    "Ranks",
    "RunCounts",
    "SimulatedEngine",
    "SimulationResult",
    "no_progress",
    "ranks_of_one",
    "simulate",
]


def simulate(
    engine: SimulatedEngine,
    settings: Settings,
    workload: Workload,
    *,
    seed: int = 0,
    steering: Steering | None = None,
    on_progress: OnProgress = no_progress,
) -> SimulationResult:
    """Run ``workload`` on ``engine`` under ``settings``; same arguments, same answer.

    ``seed`` is the load driver's. ``steering`` may change the settings on the way, within the
    engine's envelope.

    Raises:
        PlanError: the model cannot run under the plan.
        PolicyError: a mode or threshold the plan does not have, or a change that a live engine
            would refuse.
        TunerError: the engine's ``ranks_of`` does not know the plan, or a plan it is changed to.
    """
    with _uncollected():
        if steering is None and (compiled := find_compiled_run(engine, settings, workload)):
            return compiled.result(on_progress)
        run = Run(engine, settings, workload, seed=seed, steering=steering, on_progress=on_progress)
        run.to_the_end()
        return run.result()


@contextmanager
def _uncollected() -> Iterator[None]:
    """Turn the collector of cycles off. A run makes no cycles but many objects that live to its
    end, and the collector would look through those again and again (a fifteenth of the time).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
