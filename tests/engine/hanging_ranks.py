"""Ranks whose start never ends, and which of them live."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

RANK = "engine.rank.worker"


def living_ranks() -> set[int]:
    """Process ids of the ranks that this process has started and that live."""
    found = set()
    for child in psutil.Process().children():
        try:
            if RANK in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                found.add(child.pid)
        except psutil.NoSuchProcess:
            continue
    return found


@contextmanager
def starts_hang() -> Iterator[set[int]]:
    """Ranks that start inside the block stop at once; yields their process ids."""
    before, stopped, is_over = living_ranks(), set[int](), threading.Event()

    def watch() -> None:
        while not is_over.wait(0.005):
            for pid in living_ranks() - before - stopped:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                stopped.add(pid)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield stopped
    finally:
        is_over.set()
        watcher.join()
        for pid in stopped & living_ranks():
            os.kill(pid, signal.SIGKILL)
