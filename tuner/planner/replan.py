"""Plans a question again under another load, SLA or number of devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from engine.spec.plan import ParallelPlan
from policies.objective import Goal
from policies.sla import Sla
from tuner.described.node import Node
from tuner.planner.planner import PlanReport, plan_question
from tuner.planner.pool import Jobs, Workers
from tuner.planner.question import Question
from tuner.planner.run_cache import RunCache
from tuner.workload.workload import Workload

# Questions are mostly about up to this many devices.
MOST_DEVICES = 32


class Replanner:
    """Plans as ``report`` was planned, and keeps what it has simulated. The best is what takes the
    fewest devices, whatever counted as best in ``report``."""

    def __init__(self, report: PlanReport, workers: Workers) -> None:
        self._question = report.question
        self._goal = Goal(uses_all_devices=report.goal.uses_all_devices)
        self._workers = workers
        self._node = _wider(report.question.node, MOST_DEVICES)
        # No run depends on how many devices are left idle.
        self._caches = {report.question.workload: report.question.cache}

    def question(self, workload: Workload, sla: Sla) -> Question:
        """What is asked of each plan under this load and SLA, with the runs already made."""
        return Question(
            node=self._node,
            workload=workload,
            sla=sla,
            seed=self._question.seed,
            objective=self._goal.objective,
            only_decides=True,
            cache=self._caches.setdefault(workload, RunCache()),
        )

    def __call__(
        self,
        workload: Workload,
        sla: Sla,
        devices: int,
        *,
        wanted: Callable[[ParallelPlan], bool] = lambda _: True,
    ) -> PlanReport:
        """Judge the ``wanted`` plans on up to ``devices`` devices under a workload and an SLA.

        Raises:
            TunerError: none of them can run the model there.
        """
        if devices > self._node.hardware.count:
            self._node = _wider(self._node, devices)
        return plan_question(
            self._workers,
            self.question(workload, sla),
            devices=devices,
            goal=self._goal,
            on_progress=lambda *_: None,
            wanted=wanted,
        )


@contextmanager
def replanner(report: PlanReport, *, jobs: Jobs = None) -> Iterator[Replanner]:
    """What plans as ``report`` was planned, but under another workload or SLA, or on another
    number of the same devices (even more than the node has). Use ``with``: it holds processes.
    """
    with Workers(jobs) as workers:
        yield Replanner(report, workers)


def _wider(node: Node, devices: int) -> Node:
    """The node, with at least so many devices, and timers of its own."""
    hardware = replace(node.hardware, count=max(devices, node.hardware.count))
    return replace(node, hardware=hardware)
