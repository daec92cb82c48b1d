"""Runs one server and ends with its parent, whatever becomes of either.

``python keeper.py PARENT_PID GRACE_S WORD...`` starts the words as a command and leads its process
group. It ends when the command has ended, on SIGTERM, and when the parent is gone. Before that it
sends the command SIGTERM and, after the grace, SIGKILL to whatever is left of it: servers start
processes of their own, and orphans among them come to the keeper (a child subreaper).

Its exit code is the command's, 128 + the signal if one ended it, or 127 if it could not be started.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil

NOT_STARTED = 127
POLL_MS = 500
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def main(arguments: list[str]) -> int:
    """Run the command until it, its parent or its time ends; returns the exit code."""
    parent, grace_s, words = int(arguments[0]), float(arguments[1]), arguments[2:]
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        # Even if the keeper itself is killed, the command ends.
        child = subprocess.Popen(
            words, preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        )
    except OSError as error:
        print(f"{words[0]}: {error.strerror}", file=sys.stderr)
        return NOT_STARTED
    _wait(child, parent, reader)
    _end(child, grace_s)
    code = child.returncode
    return code if code >= 0 else 128 - code


def _wait(child: subprocess.Popen[bytes], parent: int, reader: int) -> None:
    """Until the child has ended, the parent is gone, or a signal says that it is time."""
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    timeout_ms: int | None = None
    for pid in (child.pid, parent):
        try:
            poller.register(os.pidfd_open(pid), select.POLLIN)
        except OSError:  # an old kernel, or it is gone already
            timeout_ms = POLL_MS
    while child.poll() is None and os.getppid() == parent and not poller.poll(timeout_ms):
        pass


def _end(child: subprocess.Popen[bytes], grace_s: float) -> None:
    """End the child, first by request, then it and all its descendants by force."""
    if child.poll() is None:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(grace_s)
    while rest := psutil.Process().children(recursive=True):
        for process in rest:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        _reap(child)
        time.sleep(0.01)
    child.wait()


def _reap(child: subprocess.Popen[bytes]) -> None:
    """Take in what has ended; the child by its own handle, which keeps its exit code."""
    child.poll()
    for process in psutil.Process().children():
        if process.pid != child.pid:
            with suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
