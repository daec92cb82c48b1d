"""Runs independent questions on several processes, or here; the answers are the same."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, TypeVar

Task = TypeVar("Task")
Answer = TypeVar("Answer")


def default_jobs() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """``jobs`` processes that answer tasks; with one, this process does. Use ``with``.

    Ctrl-C is for this process alone, which then ends the others in the middle of their tasks.
    """

    def __init__(self, jobs: int) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._children: list[BaseProcess] = []
        if jobs > 1:
            # Spawned, not forked: the parent may hold threads.
            self._pool = ProcessPoolExecutor(max_workers=jobs, mp_context=get_context("spawn"))

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            if kind is not None and issubclass(kind, KeyboardInterrupt):
                for child in self._children:
                    child.terminate()
            self._pool.shutdown(wait=True, cancel_futures=True)

    def map(
        self,
        answer: Callable[[Task], Answer],
        tasks: Sequence[Task],
        on_done: Callable[[Task], None] = lambda _: None,
    ) -> list[Answer]:
        """``answer`` of every task, in the order of ``tasks``; ``on_done`` as each is there.

        ``answer`` must be importable by name, tasks and answers plain values. What ``answer`` holds
        (as a partial) is made once a process: a question has thousands of requests, and step times
        that take long to tabulate.
        """
        if self._pool is None:
            return [_tell(answer(task), task, on_done) for task in tasks]
        others = active_children()
        with _interruptions_held():  # children, which start here, inherit that
            packed = pickle.dumps(answer)
            futures = {self._pool.submit(_answer, packed, task): task for task in tasks}
            self._children += [child for child in active_children() if child not in others]
        for future in as_completed(futures):
            future.result()
            on_done(futures[future])
        return [future.result() for future in futures]


def _answer(packed: bytes, task: Any) -> Any:
    """In another process: the answer of a packed function."""
    return _unpacked(packed)(task)


@lru_cache(maxsize=1)
def _unpacked(packed: bytes) -> Callable[[Any], Any]:
    found: Callable[[Any], Any] = pickle.loads(packed)  # noqa: S301 (of the process that started it)
    return found


@contextmanager
def _interruptions_held() -> Iterator[None]:
    """SIGINT waits until the block has ended; for ever in processes that it starts."""
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


def _tell(answer: Answer, task: Task, on_done: Callable[[Task], None]) -> Answer:
    on_done(task)
    return answer
