"""A process that its host started: the socket between them, and one life for both."""

from __future__ import annotations

import argparse
import faulthandler
import os
import re
import select
import signal
import socket
import threading

from engine.wire.frames import FrameChannel

PARENT_GONE_EXIT_CODE = 3


PARENT_POLL_MS = 500
# Variables that hold keys, or addresses of databases, which may contain a password; upper or lower
# case. Whoever starts a child that needs one tells it.
SECRET_VARIABLE = re.compile(r"GEARSHIFT_\w*(_KEY|DATABASE_URL)", re.IGNORECASE)


def inherited_environment() -> dict[str, str]:
    """This process's environment without its secrets, for a child."""
    return {k: v for k, v in os.environ.items() if not SECRET_VARIABLE.fullmatch(k)}


def begin(arguments: list[str]) -> FrameChannel:
    """Open the socket named on the command line and tie this process's life to its parent's."""
    parser = argparse.ArgumentParser(description="one rank of an engine; started by its executor")
    parser.add_argument("--socket-fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True, help="process id")
    options = parser.parse_args(arguments)
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    sock = socket.socket(fileno=options.socket_fd)
    watcher = threading.Thread(
        target=_end_with_parent, args=(sock.fileno(), options.parent), daemon=True
    )
    watcher.start()
    return FrameChannel(sock)


def _end_with_parent(socket_fd: int, parent: int) -> None:
    """Wait until the socket is hung up or the parent is gone, then end this process at once."""
    poller = select.poll()
    poller.register(socket_fd, select.POLLRDHUP)
    timeout_ms: int | None = None
    try:
        poller.register(os.pidfd_open(parent), select.POLLIN)
    except OSError:  # an old kernel, or the parent is gone already
        timeout_ms = PARENT_POLL_MS
    while os.getppid() == parent and not poller.poll(timeout_ms):
        pass
    os._exit(PARENT_GONE_EXIT_CODE)
