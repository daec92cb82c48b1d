"""Lets what takes an engine of ours seconds or minutes, such as its start, be ended on request."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from engine.engine import Engine

T = TypeVar("T")
LOOK_EVERY_S = 0.2


def until_stopped(engine: Engine, work: Callable[[], T], should_stop: Callable[[], bool]) -> T:
    """The result of ``work``, a start or a change of plan of ``engine``. Once ``should_stop`` says
    so the engine is closed, which ends it.

    Raises:
        EngineError: what ``work`` raises, also where it was ended.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine-work") as threads:
        begun = threads.submit(work)
        try:
            while not wait([begun], LOOK_EVERY_S).done:
                if should_stop():
                    engine.close()  # which waits until it has ended
        except BaseException:
            engine.close()
            raise
    return begun.result()
