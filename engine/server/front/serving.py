"""Running an ASGI application in the foreground: say when ready, drain when told to end."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from engine.server.connections import ServerConfig
from engine.spec.limits import RequestLimits


class _AnnouncingServer(uvicorn.Server):
    """Calls ``on_ready`` once the sockets accept connections."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._on_ready()


def announce_and_run(
    app: ASGIApp,
    listener: socket.socket,
    *,
    limits: RequestLimits,
    drain_s: int,
    on_ready: Callable[[], None],
) -> None:
    """Serve ``app`` on a bound socket until SIGTERM or SIGINT; requests in progress may finish.

    After ``drain_s`` seconds those that still run are cut off. ``on_ready`` runs on the event
    loop's thread and must not block.

    Raises:
        KeyboardInterrupt: the signal was SIGINT; all has ended as it should.
    """
    config = ServerConfig(
        app,
        limits,
        log_level="warning",
        lifespan="off",
        timeout_graceful_shutdown=drain_s,
    )
    with _signals_end_quietly():
        _AnnouncingServer(config, on_ready).run(sockets=[listener])


@contextmanager
def _signals_end_quietly() -> Iterator[None]:
    """When it is done, uvicorn raises a caught signal again; without this, that would come before
    our cleanup."""

    seen: set[int] = set()

    def note(number: int, _frame: FrameType | None) -> None:
        seen.add(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if signal.SIGINT in seen:
        raise KeyboardInterrupt
