"""Whether processes are gone."""

from __future__ import annotations

import psutil

from tests.waiting import wait_until

# Far above what anything here takes, so that no test is decided by it.
SOON_S = 30.0


def is_gone(pid: int) -> bool:
    """Whether the process has ended, waited for or not."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def wait_gone(pids: list[int]) -> None:
    """Return once all of ``pids`` have ended."""
    wait_until(lambda: all(map(is_gone, pids)), SOON_S)
