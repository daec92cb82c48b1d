"""Puts the dashboard on an application, where its libraries are installed."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse
from starlette.routing import Match, Mount
from starlette.types import Receive, Scope, Send

from api.dashboard.entry import PageKeys, SocketGate, respond_with_login
from api.dashboard.headers import PageHeaders
from api.dashboard.login import login_routes, plain_page
from api.dashboard.paths import OPEN_PATHS, UPLOAD, is_page
from api.dashboard.shared import SharedReadings
from api.web.auth import KeyCheck
from api.web.context import AppContext
from api.web.errors import respond
from engine.server.gate import Admit, Respond

HOW_TO_GET_IT = (
    "<p>The dashboard is not installed here. Install it and start the service again:</p>"
    "<p><code>pip install 'gearshift[dashboard]'</code></p>"
    '<p style="margin:0">The API is described at <a href="/docs">/docs</a>.</p>'
)


class Dashboard:
    """The dashboard of one application; without its libraries, a page that says how to get it."""

    def __init__(self, context: AppContext, keys: KeyCheck) -> None:
        self._context = context
        self._keys = keys
        self._shell = _make_shell() if context.settings.has_dashboard else None

    @property
    def open_paths(self) -> tuple[str, ...]:
        """What asks without a key."""
        if not self._context.settings.dashboard:
            return ()
        return OPEN_PATHS if self._shell is not None else ("/",)

    @property
    def large_bodies(self) -> dict[tuple[str, str], int]:
        """Uploads, which may be as long as by REST."""
        if self._shell is None:
            return {}
        return {("POST", UPLOAD): self._context.settings.max_upload_bytes}

    @property
    def admit(self) -> Admit:
        """How the gate knows callers."""
        return self._keys.admit if self._shell is None else PageKeys(self._keys).admit

    @property
    def respond(self) -> Respond:
        """How the gate words its refusals."""
        return respond if self._shell is None else respond_with_login

    def add_to(self, app: FastAPI) -> None:
        """Add the pages after all other routes; they take no path of theirs."""
        if self._shell is not None:
            app.include_router(login_routes(self._keys))
            app.include_router(_upload_routes(self._context))
            app.router.routes.append(_Pages(self._shell, self._context, self._keys))
        elif self._context.settings.dashboard:
            app.add_api_route("/", _say_how, include_in_schema=False)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While it lasts, open pages are kept up to date."""
        if self._shell is None:
            yield
            return
        async with AsyncExitStack() as stack:
            with warnings.catch_warnings():
                # NiceGUI looks for its server among all objects there are, and some warn.
                warnings.simplefilter("ignore")
                pages = self._shell.router.lifespan_context(self._shell)
                await stack.enter_async_context(pages)
            yield


def _upload_routes(context: AppContext) -> APIRouter:
    from api.dashboard.upload import upload_routes  # needs NiceGUI, as the shell does

    return upload_routes(context)


def _make_shell() -> FastAPI:
    from api.dashboard.shell import make_shell  # a second of imports

    return make_shell()


class _Pages(Mount):
    """The mounted pages: theirs are the paths of :mod:`api.dashboard.paths` only, so that what the
    API answers to any other stays as it was."""

    def __init__(self, shell: FastAPI, context: AppContext, keys: KeyCheck) -> None:
        gate = SocketGate(shell, PageKeys(keys), rate_per_s=context.settings.rate_per_s)
        super().__init__("", app=PageHeaders(gate), name="dashboard")
        self._state = {
            "context": context,
            "keys": keys,
            "shared": SharedReadings(context),
        }

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] not in ("http", "websocket") or not is_page(scope["path"]):
            return Match.NONE, {}
        return super().matches(scope)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {}).update(self._state)
        await super().handle(scope, receive, send)


async def _say_how() -> HTMLResponse:
    return plain_page("Gearshift", HOW_TO_GET_IT)
