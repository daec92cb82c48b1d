"""Work in a fork of a process that has imported everything: when it is killed another goes on in a
moment, where a new process would import for seconds first.

It is the process with the work that grows and is killed, as for want of memory. What is imported is
shared by both.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

import psutil
import structlog

# If a fork is killed sooner than this, that is no accident: whoever started this process decides.
SOUND_AFTER_S = 5.0
FAILED = 1
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def run_in_forks(work: Callable[[], None]) -> int:
    """Run ``work`` in a child, and again in another one when that is killed, until it ends by
    itself; its exit code.

    The child ends with this process, however that ends; whatever a killed one started is ended.
    To be called while this process has one thread, and by its main thread.
    """
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what a killed child leaves comes here
    gc.freeze()  # or a collection would write to, and so copy, every page that is shared
    parent, log = os.getpid(), structlog.get_logger("api.worker")
    while True:
        started_s = time.monotonic()
        child = os.fork()
        if child == 0:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            _run_and_end(work, parent)
        code = _wait_for(child)
        _end_orphans()
        if code >= 0 or time.monotonic() - started_s < SOUND_AFTER_S:
            return code if code >= 0 else 128 - code
        log.error("worker was killed; another goes on", signal=-code)


def _run_and_end(work: Callable[[], None], parent: int) -> NoReturn:
    """The child's life: nothing of the parent's runs at its end."""
    code = FAILED
    try:
        if os.getppid() == parent:
            work()
            code = 0
    except BaseException:
        structlog.get_logger("api.worker").exception("worker failed")
    finally:
        os._exit(code)


def _wait_for(child: int) -> int:
    """The child's exit code, negative where a signal ended it. Orphans that end are taken in."""
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


def _end_orphans() -> None:
    """Kill what is left of the child's own children, such as ranks of a live trial."""
    while left := psutil.Process().children(recursive=True):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        with suppress(ChildProcessError):
            os.wait()
