"""The service on a real port, in a thread of the test."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from api.app import create_app
from api.web.server import Server
from api.web.settings import ServiceSettings


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_service(settings: ServiceSettings, port: int) -> Iterator[str]:
    """Serve on loopback until the block ends; yields the URL."""
    server = Server(create_app(settings), port=port)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()
        thread.join()


def wait_until(is_true: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Look until it is so; fails the test after the time limit."""
    end_s = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.02)
