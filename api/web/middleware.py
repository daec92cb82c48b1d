"""What every request passes: a trace id, a log line, and a problem document for a crash."""

from __future__ import annotations

import re
import secrets
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.web.errors import ApiError, as_api_error, problem_response

TRACE_HEADER = "x-request-id"
# A caller's id is echoed and stored, so it must be short and plain.
PLAIN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Asked for every second or so by machines.
QUIET_PATHS = ("/healthz", "/readyz", "/metrics", "/heartbeats")


class RequestContext:
    """Gives each request a trace id (the caller's ``X-Request-Id`` when plain) and logs it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._log = structlog.get_logger("api.request")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace_id = _trace_id(scope)
        scope.setdefault("state", {})["trace_id"] = trace_id
        status, begin = 0, time.monotonic()

        async def send_traced(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[TRACE_HEADER] = trace_id
            await send(message)

        try:
            if _has_null(scope):
                detail = "a path or query holds a null character"
                raise ApiError(422, "invalid_request", detail)
            await self._app(scope, receive, send_traced)
        except ApiError as error:
            response = problem_response(error, trace_id=trace_id, instance=repr(scope["path"]))
            await response(scope, receive, send_traced)
        except Exception as error:
            self._log.exception("request failed", trace_id=trace_id, path=scope["path"])
            if status:
                raise  # the answer has begun; only cutting it tells the caller
            response = problem_response(
                as_api_error(error), trace_id=trace_id, instance=scope["path"]
            )
            await response(scope, receive, send_traced)
        finally:
            log = self._log.debug if scope["path"].endswith(QUIET_PATHS) else self._log.info
            log(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                ms=round((time.monotonic() - begin) * 1e3, 1),
                trace_id=trace_id,
            )


def _has_null(scope: Scope) -> bool:
    """No database keeps such a text, so nothing has a name like that."""
    return "\0" in scope["path"] or b"%00" in scope["query_string"]


def _trace_id(scope: Scope) -> str:
    given = Headers(scope=scope).get(TRACE_HEADER, "")
    return given if PLAIN_ID.fullmatch(given) else secrets.token_hex(16)
