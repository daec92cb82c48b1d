"""The service on a real port, in a thread of the test."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from api.app import create_app
from api.web.server import Server
from api.web.settings import ServiceSettings
from tests.waiting import wait_until


@contextmanager
def running_service(settings: ServiceSettings, port: int = 0) -> Iterator[str]:
    """Serve on loopback until the block ends; yields the URL. Without a ``port`` on a free one."""
    usual = sys.getswitchinterval(), gc.get_threshold()
    server = Server(create_app(settings), port=port)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        ((bound, *_),) = (listening.sockets for listening in server.servers)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.stop()
        thread.join()
        # A service sets them for its whole process, which here goes on with other tests.
        sys.setswitchinterval(usual[0])
        gc.set_threshold(*usual[1])
