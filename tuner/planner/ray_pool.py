"""Answers tasks on a Ray cluster, for questions larger than one machine.

A node that is lost takes no answer with it: Ray runs its tasks on another one.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import TypeVar

from tuner.planner.pickling import answer_packed, pack
from tuner.spec.errors import TunerError

try:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise TunerError("jobs=ray: Ray is not installed here; pip install 'gearshift[ray]'") from error

Task = TypeVar("Task")
Answer = TypeVar("Answer")

# How often a task is tried again after its node or process was lost.
RETRIES = 3
START_S = 60.0
REACH_S = 10.0


class RayPool:
    """Tasks of one core each on the cluster at ``address`` (None: the one that runs here).

    Raises:
        TunerError: no cluster answers, or a node of it has another version of this package.
    """

    def __init__(self, address: str | None) -> None:
        try:
            if address is not None:
                _reach(address)  # Ray itself would try for minutes
            ray.init(
                address=address or "auto",
                log_to_driver=False,
                configure_logging=False,
                logging_level=logging.ERROR,
            )
        except (OSError, RuntimeError, ValueError) as error:
            where = address or "on this machine"
            raise TunerError(
                f"jobs=ray: no Ray cluster answers {where} ({error}); start one with ray start "
                "--head, or name it: ray:HOST:PORT"
            ) from error
        try:
            _check_nodes()
        except BaseException:
            ray.shutdown()
            raise

    def map(
        self,
        answer: Callable[[Task], Answer],
        tasks: Sequence[Task],
        on_done: Callable[[Task, Answer], None],
    ) -> list[Answer]:
        """As :meth:`tuner.planner.pool.Workers.map`.

        Raises:
            TunerError: a task was lost with its node or process more than ``RETRIES`` times.
        """
        remote = ray.remote(num_cpus=1, max_retries=RETRIES)(answer_packed)
        shared = ray.put(pack(answer))  # once, not with every task
        references = {remote.remote(shared, task): task for task in tasks}
        waiting = list(references)
        try:
            while waiting:
                done, waiting = ray.wait(waiting)
                for reference in done:
                    on_done(references[reference], ray.get(reference))
            return list(ray.get(list(references)))
        except (ray.exceptions.NodeDiedError, ray.exceptions.WorkerCrashedError) as error:
            raise TunerError(
                f"jobs=ray: a task was lost {RETRIES + 1} times with its node or process, which "
                f"may lack memory: {error}"
            ) from error
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)

    def close(self) -> None:
        """Leave the cluster; nothing of ours runs there any more."""
        ray.shutdown()


def _reach(address: str) -> None:
    """Raises OSError or ValueError: nobody listens there, or it is no address."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=REACH_S).close()


def _check_nodes() -> None:
    """Raises TunerError for a node that runs another version, or does not have it."""
    ours = version("gearshift")
    for node in ray.nodes():
        if not node["Alive"] or not node["Resources"].get("CPU"):
            continue
        there = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        ask = ray.remote(num_cpus=1, scheduling_strategy=there)(version)
        name = node["NodeManagerHostname"]
        try:
            theirs = ray.get(ask.remote("gearshift"), timeout=START_S)
        except ray.exceptions.GetTimeoutError as error:
            raise TunerError(
                f"jobs=ray: node {name} has had no free core for {START_S:g} s; wait for its tasks"
            ) from error
        except ModuleNotFoundError as error:
            raise TunerError(
                f"jobs=ray: node {name} has no gearshift; install version {ours} there"
            ) from error
        if theirs != ours:
            raise TunerError(
                f"jobs=ray: node {name} has gearshift {theirs}, {ours} asks; install the same"
            )
