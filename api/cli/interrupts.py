"""What Ctrl-C means to a command that has something to say when it is stopped."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from api.cli.common import end_interrupted, log


@contextmanager
def stoppable(what_is_kept: str) -> Iterator[Callable[[], bool]]:
    """Yields whether Ctrl-C was pressed. The second time ends the command at once, as usual."""
    is_stopped = False

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal is_stopped
        if is_stopped:
            raise KeyboardInterrupt
        is_stopped = True
        log(f"stopping: {what_is_kept}; press Ctrl-C again to end at once")

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield lambda: is_stopped
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def watched(again: str) -> Iterator[None]:
    """Ctrl-C ends the watching only: what the service does goes on, and ``again`` watches it."""
    try:
        yield
    except KeyboardInterrupt:
        log(f"it goes on without being watched; to watch again: {again}")
        end_interrupted()
