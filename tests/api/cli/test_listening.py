"""The sockets that servers listen on."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

import pytest

from api.cli.listening import bind, listen


def _handed_to_a_child(listener: socket.socket) -> socket.socket:
    """The listener as the front process gets it: by its descriptor alone."""
    return socket.socket(fileno=os.dup(listener.fileno()))


async def _sends_at_once(listener: socket.socket) -> bool:
    """Whether a connection that asyncio accepts on ``listener`` waits for no acknowledgement."""
    found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def look(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted = writer.get_extra_info("socket")
        found.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async with await asyncio.start_server(look, sock=listener):
        _, writer = await asyncio.open_connection(*listener.getsockname()[:2])
        is_set = bool(await asyncio.wait_for(found, 30))
        writer.close()
        await writer.wait_closed()
    return is_set


@pytest.mark.parametrize("make", [bind, listen])
@pytest.mark.parametrize("hand_over", [lambda listener: listener, _handed_to_a_child])
def test_answers_leave_at_once_however_the_server_got_its_listener(
    make: Callable[[str, int], socket.socket],
    hand_over: Callable[[socket.socket], socket.socket],
) -> None:
    with make("127.0.0.1", 0) as listener, hand_over(listener) as served:
        assert asyncio.run(_sends_at_once(served))
