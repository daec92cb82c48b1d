"""Runs independent questions on processes, here or on a cluster; the answers are the same."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from typing import Protocol, TypeVar

from engine.spec.processor import num_cores
from tuner.planner.pickling import answer_packed, pack
from tuner.spec.errors import TunerError

Task = TypeVar("Task")
Answer = TypeVar("Answer")


# Processes of this machine (None: one per core), or ``ray`` or ``ray:HOST:PORT``.
Jobs = int | str | None
MOST_JOBS = 1024
RAY = "ray"


@dataclass(frozen=True)
class OnRay:
    """A Ray cluster; without an address the one that runs on this machine."""

    address: str | None


def read_jobs(jobs: Jobs) -> int | OnRay:
    """What ``jobs`` names.

    Raises:
        TunerError: neither a number of processes nor a cluster.
    """
    if jobs is None:
        return num_cores()
    if isinstance(jobs, str):
        kind, colon, address = jobs.partition(":")
        if kind == RAY and bool(colon) == bool(address):
            return OnRay(address or None)
        if not jobs.isdecimal():
            raise TunerError(f"jobs={jobs}: a number of processes, ray, or ray:HOST:PORT")
    if not 1 <= int(jobs) <= MOST_JOBS:
        raise TunerError(f"jobs={jobs}: from 1 to {MOST_JOBS} processes")
    return int(jobs)


class Pool(Protocol):
    """Processes that answer tasks, here or elsewhere."""

    def map(
        self,
        answer: Callable[[Task], Answer],
        tasks: Sequence[Task],
        on_done: Callable[[Task, Answer], None],
    ) -> list[Answer]:
        """As :meth:`Workers.map`."""

    def close(self) -> None:
        """End them."""


class Workers:
    """Answers tasks on ``jobs`` processes of this machine (by default one per core) or on a Ray
    cluster; with one job, in this process. Use ``with``.

    Ctrl-C is for this process alone, which then ends the others in the middle of their tasks.

    Raises:
        TunerError: jobs that :func:`read_jobs` refuses, or a cluster that cannot be used.
    """

    def __init__(self, jobs: Jobs) -> None:
        found = read_jobs(jobs)
        self._pool: Pool | None = None
        if isinstance(found, OnRay):
            from tuner.planner.ray_pool import RayPool

            self._pool = RayPool(found.address)
        elif found > 1:
            self._pool = LocalPool(found)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.close()

    def map(
        self,
        answer: Callable[[Task], Answer],
        tasks: Sequence[Task],
        on_done: Callable[[Task, Answer], None] = lambda *_: None,
    ) -> list[Answer]:
        """``answer`` of every task, in the order of ``tasks``; ``on_done`` as each is there, so
        that whoever is interrupted has what was answered by then.

        ``answer`` must be importable by name, tasks and answers plain values. What ``answer`` holds
        (as a partial) is made once a process: a question has thousands of requests, and step times
        that take long to tabulate.
        """
        if self._pool is None:
            return [_tell(answer(task), task, on_done) for task in tasks]
        return self._pool.map(answer, tasks, on_done)


class LocalPool:
    """Several processes of this machine."""

    def __init__(self, jobs: int) -> None:
        self._children: list[BaseProcess] = []
        # Spawned, not forked: the parent may hold threads.
        self._pool = ProcessPoolExecutor(max_workers=jobs, mp_context=get_context("spawn"))

    def map(
        self,
        answer: Callable[[Task], Answer],
        tasks: Sequence[Task],
        on_done: Callable[[Task, Answer], None],
    ) -> list[Answer]:
        others = active_children()
        with _interruptions_held():  # children, which start here, inherit that
            packed = pack(answer)
            futures = {self._pool.submit(answer_packed, packed, task): task for task in tasks}
            self._children += [child for child in active_children() if child not in others]
        try:
            for future in as_completed(futures):
                on_done(futures[future], future.result())
        except KeyboardInterrupt:
            for child in self._children:
                child.terminate()
            raise
        return [future.result() for future in futures]

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interruptions_held() -> Iterator[None]:
    """SIGINT waits until the block has ended; in processes that the block starts, for ever."""
    if threading.current_thread() is not threading.main_thread():
        yield  # none comes to it
        return
    held: list[int] = []
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    # A thread without the mask, such as one of BLAS, may take the signal all the same.
    handler = signal.signal(signal.SIGINT, lambda number, _frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if held:
        signal.raise_signal(signal.SIGINT)


def _tell(answer: Answer, task: Task, on_done: Callable[[Task, Answer], None]) -> Answer:
    on_done(task, answer)
    return answer
