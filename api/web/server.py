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

# What is still open after this is cut; its clients come back by themselves.
DRAIN_S = 3
# Seconds that one thread may keep the interpreter from another. SQLite gives it away at every
# statement; with Python's 5 ms a transaction of eight statements under load takes 40 ms. Of 1,000
# engines' heartbeats on SQLite the p99 was 124 ms with 0.5 ms and 72 ms with this.
SWITCH_S = 0.0002
# When the collector looks for garbage, as in gc.set_threshold. A thousand requests that wait are
# half a million objects, and by Python's defaults all of them were searched every three seconds,
# for 0.12 s and some fifty objects each time. Now it is about every two minutes.
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
