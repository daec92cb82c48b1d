"""What requests to the service pass before a route sees them."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api.web.errors import ApiError, problem_response


class RefuseNulls:
    """Refuses names with a null character: no database keeps such a text, so nothing has it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _has_null(scope):
            error = ApiError(422, "invalid_request", "a path or query holds a null character")
            trace_id = Request(scope).state.trace_id
            response = problem_response(error, trace_id=trace_id, instance=repr(scope["path"]))
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _has_null(scope: Scope) -> bool:
    return "\0" in scope["path"] or b"%00" in scope["query_string"]
