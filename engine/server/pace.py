"""Every answer of an engine that runs no model says so."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

PACED_HEADER = "x-gearshift-paced"


class PacedAnswers:
    """Puts :data:`PACED_HEADER` on every answer of ``app``: the hardware it is paced as."""

    def __init__(self, app: ASGIApp, paced_as: str) -> None:
        self._app = app
        self._header = (PACED_HEADER.encode(), paced_as.encode("ascii", "replace"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), self._header]}
            await send(message)

        await self._app(scope, receive, send_marked)
