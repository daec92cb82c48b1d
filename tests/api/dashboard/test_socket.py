"""What the WebSocket of a page may send."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from api.dashboard.entry import COOKIE, TOO_MUCH, PageKeys, SocketGate
from api.web.auth import KeyCheck, ensure_first_key
from store import Database
from tests.api.conftest import ADMIN

RATE_PER_S = 0.5  # five at once
HEADERS = {"Origin": "http://testserver", "Cookie": f"{COOKIE}={ADMIN}"}


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Says everything again, until the other side goes."""
    socket = WebSocket(scope, receive, send)
    await socket.accept()
    async for text in socket.iter_text():
        await socket.send_text(text)


@pytest.fixture
def gated(database: Database) -> TestClient:
    ensure_first_key(database, ADMIN, print)
    keys = PageKeys(KeyCheck(database))
    return TestClient(SocketGate(echo, keys, rate_per_s=RATE_PER_S))


def test_messages_count_against_the_rate_of_the_key(gated: TestClient) -> None:
    with gated.websocket_connect("/_nicegui_ws/", headers=HEADERS) as socket:
        for number in range(5):
            socket.send_text(str(number))
            assert socket.receive_text() == str(number)
        socket.send_text("one too many")
        with pytest.raises(WebSocketDisconnect) as ended:
            socket.receive_text()
    assert ended.value.code == TOO_MUCH


def test_a_message_of_a_second_page_of_the_key_counts_too(gated: TestClient) -> None:
    with gated.websocket_connect("/_nicegui_ws/", headers=HEADERS) as first:
        for _ in range(5):
            first.send_text("x")
            first.receive_text()
    with gated.websocket_connect("/_nicegui_ws/", headers=HEADERS) as second:
        second.send_text("x")
        with pytest.raises(WebSocketDisconnect):
            second.receive_text()
