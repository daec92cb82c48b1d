"""What other threads ask of a loop."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")
Command = Callable[[], None]
# How often whoever stands in for a loop looks at what needs no command, such as deadlines.
STAND_IN_POLL_S = 0.25


class Mailbox:
    """Commands for one loop, in the order in which they were posted.

    Any thread may post. The loop's own thread runs them, or another that stands in for it. Once
    closed it takes no more, so that each command is either run or refused.
    """

    def __init__(self) -> None:
        self._commands: deque[Command] = deque()
        self._has_come = threading.Condition()
        self._is_closed = False

    def post(self, command: Command) -> bool:
        """Have ``command`` run soon; False if nobody will, because it is closed."""
        with self._has_come:
            if self._is_closed:
                return False
            self._commands.append(command)
            self._has_come.notify_all()
        return True

    def wake(self) -> None:
        """Let whoever waits go on."""
        self.post(_nothing)

    def wait(self, timeout_s: float) -> bool:
        """Whether commands are there; waits ``timeout_s`` for one."""
        with self._has_come:
            return self._has_come.wait_for(lambda: bool(self._commands), timeout_s)

    def run(self) -> None:
        """Run what has come."""
        while self._commands:
            self._commands.popleft()()

    def run_during(self, work: Callable[[], T], run: Command) -> T:
        """Do ``work`` on this thread and return its result. Meanwhile another thread stands in for
        it: it calls ``run`` when commands have come, and every now and then. Its errors are raised
        here.
        """
        is_over = threading.Event()
        failures: list[BaseException] = []

        def stand_in() -> None:
            try:
                while not is_over.is_set():
                    self.wait(STAND_IN_POLL_S)
                    run()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=stand_in, name="stand-in", daemon=True)
        thread.start()
        try:
            result = work()
        finally:
            is_over.set()
            self.wake()
            thread.join()
        if failures:
            raise failures[0]
        return result

    def close(self) -> None:
        """Run what is left, whatever fails, and refuse what comes from now on."""
        while True:
            with self._has_come:
                if not self._commands:
                    self._is_closed = True
                    return
            try:
                self.run()
            except Exception:
                logger.exception("a command failed as its loop ended")


def _nothing() -> None:
    return
