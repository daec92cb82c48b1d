"""A client that goes away frees its sequence, over real HTTP."""

from __future__ import annotations

import json
from http.client import HTTPConnection
from urllib.parse import urlsplit

from engine.spec.request import FinishReason
from tests.engine.server.conftest import (
    MODEL,
    Server,
)
from tests.waiting import wait_until

LONG = {"model": MODEL, "prompt": "The engine", "max_tokens": 2000, "ignore_eos": True}


def _aborted(server: Server) -> int:
    return server.engine.stats().finished[FinishReason.ABORT]


def test_leaving_a_stream_frees_its_sequence(slow_server: Server) -> None:
    before = _aborted(slow_server)
    with slow_server.http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as reply:
        lines = reply.iter_lines()  # kept: one that is dropped closes the connection
        next(lines)
        assert slow_server.engine.stats().running == 1
    wait_until(lambda: slow_server.engine.stats().running == 0)
    assert _aborted(slow_server) == before + 1
    assert slow_server.engine.stats().kv_usage == 0


def test_leaving_while_waiting_for_a_whole_answer_frees_every_choice(slow_server: Server) -> None:
    before = _aborted(slow_server)
    client = HTTPConnection(urlsplit(slow_server.url).netloc)
    headers = {"Content-Type": "application/json"}
    client.request("POST", "/v1/completions", json.dumps({**LONG, "n": 3}), headers)
    wait_until(lambda: slow_server.engine.stats().running == 3)
    client.close()
    wait_until(lambda: _aborted(slow_server) == before + 3)
    wait_until(lambda: slow_server.engine.stats().running == 0)


def test_others_go_on_when_one_client_leaves(slow_server: Server) -> None:
    with slow_server.http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as reply:
        leaving = reply.iter_lines()
        next(leaving)
        other = {**LONG, "max_tokens": 20, "stream": True}
        with slow_server.http.stream("POST", "/v1/completions", json=other) as staying:
            lines = staying.iter_lines()
            next(lines)
            reply.close()
            events = [line for line in lines if line.startswith("data: ")]
    assert events[-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in events[-2]
