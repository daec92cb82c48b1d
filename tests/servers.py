"""uvicorn on a loopback port, in a thread of the test."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from tests.waiting import wait_until

LOOK_EVERY_S = 0.01


@contextmanager
def in_thread(server: uvicorn.Server) -> Iterator[str]:
    """Run ``server`` on a free port until the block ends; yields its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def serve(app: Any) -> Iterator[str]:
    """Serve an ASGI application until the block ends; yields its URL."""
    with in_thread(uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))) as url:
        yield url


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Servers of the block end as soon as they can. uvicorn looks ten times a second whether it
    should end, and then waits for as long again: a fifth of a second for each server of a test."""

    class Asyncio:
        def __getattr__(self, name: str) -> Any:
            return getattr(asyncio, name)

        async def sleep(self, seconds: float) -> None:
            await asyncio.sleep(min(seconds, LOOK_EVERY_S))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uvicorn.server.asyncio", Asyncio())
        yield
