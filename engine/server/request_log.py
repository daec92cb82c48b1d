"""What every request to a server passes first: an id, a line in the log, an answer to a crash."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable

import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.server.headers import find_header

REQUEST_ID_HEADER = b"x-request-id"
# A caller's id is echoed and stored, so it must be short and plain.
PLAIN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Machines ask for these every second or so.
QUIET_PATHS = ("/health", "/healthz", "/readyz", "/ping", "/metrics", "/heartbeats")


class RequestLog:
    """Gives each request an id: the caller's ``X-Request-Id`` when that is plain.

    The id is in ``state.trace_id``, in a header of the answer, and in every line that is logged
    meanwhile (``request_id``). Each request is logged when it is over: server errors as warnings,
    others if ``logs_requests``, and those of :data:`QUIET_PATHS` and of paths with one of
    ``quiet_beginnings`` only while debugging. If ``app`` crashes before an answer has begun,
    ``answer_crash`` answers.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        logger: str,
        answer_crash: Callable[[Request, Exception], Response],
        logs_requests: bool = True,
        quiet_beginnings: tuple[str, ...] = (),
    ) -> None:
        self._app = app
        self._answer_crash = answer_crash
        self._logs_requests = logs_requests
        self._quiet_beginnings = quiet_beginnings
        self._log = structlog.get_logger(logger)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["trace_id"] = request_id
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            await self._pass_on(scope, receive, send, request_id)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        status, begin_s = 0, time.monotonic()
        named = REQUEST_ID_HEADER, request_id.encode()

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), named]
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception as error:
            self._log.exception("request failed", path=scope["path"])
            if status:
                raise  # the answer has begun; only cutting it tells the caller
            await self._answer_crash(Request(scope), error)(scope, receive, send_named)
        finally:
            self._log_end(scope, status, time.monotonic() - begin_s)

    def _log_end(self, scope: Scope, status: int, took_s: float) -> None:
        if status >= 500:
            log = self._log.warning
        elif self._logs_requests:
            path = scope["path"]
            is_quiet = path.endswith(QUIET_PATHS) or path.startswith(self._quiet_beginnings)
            log = self._log.debug if is_quiet else self._log.info
        else:
            return
        # The id in the answer's body, which the engine's own log lines use for its requests.
        response_id = scope["state"].get("response_id")
        named = {} if response_id is None else {"response_id": response_id}
        log(
            "request",
            method=scope["method"],
            path=scope["path"],
            status=status,
            ms=round(took_s * 1e3, 1),
            **named,
        )


def _request_id(scope: Scope) -> str:
    given = find_header(scope, REQUEST_ID_HEADER) or ""
    return given if PLAIN_ID.fullmatch(given) else secrets.token_hex(16)
