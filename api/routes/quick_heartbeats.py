"""Heartbeats past the framework, which spends ten times as much on one as reading and answering it.

Only what is right is answered here. Everything else goes on to the route of the API, which has the
words for what is wrong; both stand behind the same gate and take the same :class:`HeartbeatIn`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.schemas import access
from api.schemas.serving import HeartbeatIn, HeartbeatOut
from api.services.heartbeats import Beat
from api.web.auth import CREDENTIAL_HEADER, MAX_CREDENTIAL, scopes_of
from api.web.errors import respond
from api.web.group_commit import GroupCommit
from engine.server.headers import find_header

PATH = re.compile(r"/v1/engines/([^/]+)/heartbeats")
JSON = "application/json"


@dataclass(frozen=True)
class _Route:
    """How traces name the call: as the framework's own routes."""

    path: str


ROUTE = _Route("/v1/engines/{engine_id}/heartbeats")


class QuickHeartbeats:
    """Answers heartbeats that are as they should be; ``app`` answers everything else."""

    def __init__(self, app: ASGIApp, *, heartbeats: GroupCommit[Beat, HeartbeatOut]) -> None:
        self._app = app
        self._heartbeats = heartbeats

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        engine_id = _sender(scope)
        if engine_id is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            body = await request.body()
            beat = Beat(
                engine_id=engine_id,
                body=HeartbeatIn.model_validate_json(body),
                credential=find_header(scope, CREDENTIAL_HEADER),
            )
        except ValidationError:
            await self._app(scope, _again(body, receive), send)
            return
        except HTTPException as error:  # the gate's: too long, too late
            await respond(request, error)(scope, receive, send)
            return
        except ClientDisconnect:
            return
        scope["route"] = ROUTE
        await (await self._answer(request, beat))(scope, receive, send)

    async def _answer(self, request: Request, beat: Beat) -> Response:
        try:
            answer = await self._heartbeats.add(beat)
        except Exception as error:
            return respond(request, error)
        return Response(answer.model_dump_json(), 202, media_type=JSON)


def _sender(scope: Scope) -> str | None:
    """The engine whose heartbeat a request is; None: it is none, or not quite as it should be."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    found = PATH.fullmatch(scope["path"])
    if found is None or access.Scope.APPLY not in scopes_of(scope["state"]["key"]):
        return None
    kind = find_header(scope, b"content-type") or ""
    credential = find_header(scope, CREDENTIAL_HEADER) or ""
    is_plain = kind.partition(";")[0].strip().lower() == JSON and len(credential) <= MAX_CREDENTIAL
    return found[1] if is_plain else None


def _again(body: bytes, receive: Receive) -> Receive:
    """The body that was read already, then what comes after it."""
    parts = [body]

    async def receive_again() -> Message:
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": False}
        return await receive()

    return receive_again
