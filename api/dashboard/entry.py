"""Who may come in: people by a key in a cookie, programs by their header.

The cookie opens the dashboard's paths only. The API stays with ``Authorization``, which no page of
another site can make a browser send.
"""

from __future__ import annotations

from http import HTTPStatus
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection, Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.dashboard.paths import LOGIN, is_page
from api.web.auth import KeyCheck
from api.web.errors import ApiError, respond
from engine.server.limits import RateLimit
from store.models import ApiKey

COOKIE = "gearshift_key"
# Close codes of RFC 6455: the caller may not, or sends too much.
REFUSED, TOO_MUCH = 1008, 1013


class PageKeys:
    """The gate's knowledge of callers, with the dashboard's cookie."""

    def __init__(self, keys: KeyCheck) -> None:
        self._keys = keys

    async def admit(self, request: Request) -> str:
        """Keep the caller's key for the route and return its id.

        Raises:
            ApiError: 401 without a valid key.
        """
        if not is_page(request.scope["path"]):
            return await self._keys.admit(request)
        request.state.key = await self.find(request)
        return str(request.state.key.id)

    async def find(self, connection: HTTPConnection) -> ApiKey:
        """The key in the cookie.

        Raises:
            ApiError: 401, none or not a valid one.
        """
        secret = connection.cookies.get(COOKIE)
        if not secret:
            raise ApiError(401, "missing_key", f"log in at {LOGIN}")
        return await self._keys.find(secret)


def respond_with_login(request: Request, error: Exception) -> Response:
    """The refusal at the gate; whoever asks for a page without a valid key is sent to the login."""
    path = request.scope["path"]
    is_unknown = isinstance(error, ApiError) and error.status == HTTPStatus.UNAUTHORIZED
    if is_unknown and is_page(path) and "text/html" in request.headers.get("accept", ""):
        return RedirectResponse(f"{LOGIN}?next={quote(path)}", HTTPStatus.SEE_OTHER.value)
    return respond(request, error)


class SocketGate:
    """Lets the WebSockets of open pages in: from this site, with a key, at the key's rate."""

    def __init__(self, app: ASGIApp, keys: PageKeys, *, rate_per_s: float) -> None:
        self._app = app
        self._keys = keys
        self._rate = RateLimit(rate_per_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
            return
        try:
            key = await self._keys.find(HTTPConnection(scope))
        except ApiError:
            key = None
        if key is None or not is_own(Headers(scope=scope)):
            await send({"type": "websocket.close", "code": REFUSED})
            return
        key_id, has_closed = key.id, False

        async def receive_counted() -> Message:
            nonlocal has_closed
            message = await receive()
            if message["type"] == "websocket.receive" and self._rate.take(key_id) is not None:
                if not has_closed:
                    has_closed = True
                    await send({"type": "websocket.close", "code": TOO_MUCH})
                return {"type": "websocket.disconnect", "code": TOO_MUCH}
            return message

        await self._app(scope, receive_counted, send)


def is_own(headers: Headers) -> bool:
    """Whether a page of this server opened the connection; browsers always say which did."""
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc == headers.get("host")
