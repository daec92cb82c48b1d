"""A server whose engine runs no model says so wherever its callers look."""

from __future__ import annotations

import pytest

from engine.server.pace import PACED_HEADER
from tests.engine.server.conftest import MODEL, Server

CHAT = [{"role": "user", "content": "x"}]


def test_a_paced_server_says_so_in_its_version_and_as_the_models_owner(slow_server: Server) -> None:
    http = slow_server.http
    assert http.get("/version").json()["paced"] == "unnamed hardware"
    owner = "gearshift, paced as unnamed hardware"
    assert http.get("/v1/models").json()["data"][0]["owned_by"] == owner
    assert http.get(f"/v1/models/{MODEL}").json()["owned_by"] == owner


@pytest.mark.parametrize("stream", [False, True])
def test_every_answer_of_a_paced_server_carries_the_header(
    slow_server: Server, stream: bool
) -> None:
    answers = [
        slow_server.complete(prompt="x", max_tokens=2, stream=stream),
        slow_server.chat(messages=CHAT, max_tokens=2, stream=stream),
        slow_server.complete(prompt=[], stream=stream),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 400]
    assert {answer.headers.get(PACED_HEADER) for answer in answers} == {"unnamed hardware"}


def test_a_server_that_runs_its_model_says_nothing_of_the_kind(server: Server) -> None:
    assert "paced" not in server.http.get("/version").json()
    assert server.http.get("/v1/models").json()["data"][0]["owned_by"] == "gearshift"
    answer = server.complete(prompt="x", max_tokens=2)
    assert answer.status_code == 200
    assert PACED_HEADER not in answer.headers
