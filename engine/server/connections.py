"""uvicorn with bounds: on the number of connections, and on the time until a request has come."""

from __future__ import annotations

import asyncio
import math
from http import HTTPStatus
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from engine.server.strict_http import StrictProtocol
from engine.spec.limits import RequestLimits

MAX_SOCKET_MESSAGE_BYTES = 2**20
# Where ``scope["state"]`` has the connection's socket.
SOCKET_STATE = "socket"


class ServerConfig(uvicorn.Config):
    """uvicorn's configuration for ``app`` under ``limits``; ``options`` are uvicorn's own.

    Without ``has_sockets`` no connection becomes a WebSocket.
    """

    def __init__(
        self, app: ASGIApp, limits: RequestLimits, *, has_sockets: bool = False, **options: Any
    ) -> None:
        super().__init__(
            app,
            http=BoundedProtocol,
            ws="websockets-sansio" if has_sockets else "none",
            ws_max_size=min(MAX_SOCKET_MESSAGE_BYTES, limits.max_body_bytes),
            access_log=False,
            # The same event loop whatever else is installed: with uvloop, a connection's socket is
            # another kind of object.
            loop="asyncio",
            # The protocol's own timer is the one that counts.
            timeout_keep_alive=math.ceil(limits.keep_alive_s) + 1,
            **options,
        )
        self.limits = limits
        # Connections without a request, the one that has waited longest first.
        self.waiting: dict[BoundedProtocol, None] = {}


class BoundedProtocol(StrictProtocol):
    """A connection that must send each request head in time.

    Between two requests it may rest for longer: until the first byte of the next one, or until it
    ends. In the midst of an answer its client must go on reading.
    """

    def __init__(self, config: uvicorn.Config, *args: Any, **options: Any) -> None:
        assert isinstance(config, ServerConfig), "its limits are there"
        super().__init__(config, *args, **options)
        self._limits = config.limits
        self._waiting = config.waiting
        self._timer: asyncio.TimerHandle | None = None
        self._is_resting = False
        self._unsent_bytes = 0
        self._is_socket = False
        self._reader_timer: asyncio.TimerHandle | None = None

    # The server's own protocol narrows asyncio's argument in the same way.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, SOCKET_STATE: transport.get_extra_info("socket")}
        if len(self.connections) > self._limits.max_connections:
            self._make_room()
        self._look()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look()

    def handle_websocket_upgrade(self) -> None:
        super().handle_websocket_upgrade()
        self._is_socket = True
        self._stop_waiting()
        self._stop_awaiting_reader()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_awaiting_reader()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_awaiting_reader()

    def _await_reader(self) -> None:
        """Cut the connection unless its client has read something when the time is over."""
        unsent_bytes = self.transport.get_write_buffer_size()
        limit_s = self._limits.body_timeout_s
        self._reader_timer = self.loop.call_later(limit_s, self._look_at_reader, unsent_bytes)

    def _look_at_reader(self, unsent_bytes: int) -> None:
        if self.transport.get_write_buffer_size() < unsent_bytes:
            self._await_reader()
        else:
            self.transport.abort()

    def _stop_awaiting_reader(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def _look(self) -> None:
        """Start the time limit when a request is awaited, and stop it when one has begun."""
        if self._is_socket or self._is_answering:
            self._stop_waiting()
            return
        self._unsent_bytes = self.transport.get_write_buffer_size()
        has_begun = self.cycle is None or self._has_begun
        is_resting = not has_begun and not self._unsent_bytes
        if self._timer is None or is_resting is not self._is_resting:
            self._stop_waiting()
            self._waiting[self] = None
            self._is_resting = is_resting
            limits = self._limits
            limit_s = limits.keep_alive_s if is_resting else limits.header_timeout_s
            self._timer = self.loop.call_later(limit_s, self._end_waiting)

    def _stop_waiting(self) -> None:
        self._waiting.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_waiting(self) -> None:
        """Cut a connection, unless its client still reads the last answer."""
        self._stop_waiting()
        if self.transport.get_write_buffer_size() < self._unsent_bytes:
            self._look()
        else:
            self.transport.abort()

    def _make_room(self) -> None:
        oldest = next(iter(self._waiting), None)
        if oldest is not None:
            oldest._stop_waiting()
            self.connections.discard(oldest)  # the loop tells of its end only later
            oldest.transport.abort()
        else:
            status = HTTPStatus.SERVICE_UNAVAILABLE
            self._refuse(status, "Too many connections.", ("retry-after", "1"))
