"""uvicorn around the application: waiting requests end with the service."""

from __future__ import annotations

import gc
import socket
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI

from api.web.context import AppContext
from engine.server.connections import ServerConfig

# Connections still open after this are cut; their clients come back by themselves.
DRAIN_S = 3
# How long one thread may keep the interpreter lock from another. SQLite releases it at every
# statement, so with Python's default of 5 ms a transaction of eight statements takes 40 ms under
# load. The p99 of 1,000 engines' heartbeats on SQLite was 124 ms with 0.5 ms and 72 ms with this.
SWITCH_S = 0.0002
# Thresholds of the garbage collector (gc.set_threshold). A thousand waiting requests are half a
# million objects; with Python's defaults all of them were searched every three seconds, which took
# 0.12 s and freed some fifty objects. With these it is about every two minutes.
COLLECT_AT = (5000, 10, 50)


class Server(uvicorn.Server):
    """Serves ``app`` until a signal or :meth:`stop`."""

    def __init__(self, app: FastAPI, *, port: int | None = None) -> None:
        self._context: AppContext = app.state.context
        config = ServerConfig(
            app,
            self._context.settings.limits,
            has_sockets=self._context.settings.has_dashboard,
            port=port or 0,
            log_config=None,
            timeout_graceful_shutdown=DRAIN_S,
        )
        super().__init__(config)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        sys.setswitchinterval(SWITCH_S)
        super().run(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What is there now stays. Searched for garbage again and again, it was a quarter of the
        # service's time under a thousand engines, in pauses of 30 ms and more.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*COLLECT_AT)

    def stop(self) -> None:
        """Ask the service to end; long polls and event streams answer at once."""
        self._context.watch.end()
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._context.watch.end()
        super().handle_exit(sig, frame)
