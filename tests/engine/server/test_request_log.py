"""Every request has an id, which its answer, its errors and its log lines carry."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from engine.logs import LIBRARY_LOGGER, configure_logs
from engine.server.keys import ServerKeys
from tests.engine.server.conftest import (
    MODEL,
    Server,
    serving,
    simulated_engine,
)
from tests.waiting import wait_until

ID = "order-66"
BODY = {"model": MODEL, "prompt": "x", "max_tokens": 2}


@pytest.fixture(scope="module")
def served(tiny_dir: Path) -> Iterator[Server]:
    with (
        simulated_engine(tiny_dir, step_s=0.001) as engine,
        serving(engine, tiny_dir, keys=ServerKeys(api="k"), logs_requests=True) as server,
    ):
        server.http.headers["Authorization"] = "Bearer k"
        yield server


@pytest.fixture
def _logs() -> Iterator[None]:
    before = structlog.get_config()
    handlers = list(logging.getLogger(LIBRARY_LOGGER).handlers)
    configure_logs("info")
    yield
    structlog.configure(**before)
    logging.getLogger(LIBRARY_LOGGER).handlers[:] = handlers


def _lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def _two_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The next two: a line may come after the last byte of its answer."""
    err = ""

    def has_both() -> bool:
        nonlocal err
        err += capsys.readouterr().err
        return len(_lines(err)) == 2

    wait_until(has_both)
    return _lines(err)


@pytest.mark.usefixtures("_logs")
def test_a_request_is_logged_with_its_callers_id_and_the_id_of_its_answer(
    served: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    for stream in (False, True):
        reply = served.http.post(
            "/v1/completions", json=BODY | {"stream": stream}, headers={"X-Request-ID": ID}
        )
        assert reply.headers["x-request-id"] == ID
    document, streamed = _two_lines(capsys)
    assert document["request_id"] == streamed["request_id"] == ID
    assert (document["path"], document["status"]) == ("/v1/completions", 200)
    assert streamed["response_id"] == json.loads(reply.text.split("data: ")[1])["id"]


@pytest.mark.parametrize("given", [None, "two words", "x" * 65, "a\tb"])
def test_an_id_that_is_none_is_replaced(served: Server, given: str | None) -> None:
    headers = {} if given is None else {"X-Request-ID": given}
    found = served.http.get("/v1/models", headers=headers).headers["x-request-id"]
    assert found != given
    assert len(found) == 32


def test_refusals_of_every_kind_carry_the_id(served: Server) -> None:
    named = {"X-Request-ID": ID}
    asked = served.http
    answers = [
        asked.get("/v1/models", headers=named | {"Authorization": "Bearer wrong"}),
        asked.post("/v1/completions", json={}, headers=named),
        asked.get("/nowhere", headers=named),
        asked.patch("/v1/engine/policy", json={}, headers=named),
    ]
    assert [answer.status_code for answer in answers] == [401, 400, 404, 428]
    assert {answer.headers["x-request-id"] for answer in answers} == {ID}
    assert answers[-1].json()["trace_id"] == ID


@pytest.mark.usefixtures("_logs")
def test_what_the_engine_itself_logs_meanwhile_has_the_id_too(
    served: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    body = BODY | {"user": "u", "route": "somewhere-new"}  # a field that is ignored is told of once
    served.http.post("/v1/completions", json=body, headers={"X-Request-ID": ID})
    own = [line for line in _lines(capsys.readouterr().err) if line["event"] != "request"]
    assert [line["request_id"] for line in own] == [ID]


@pytest.mark.usefixtures("_logs")
def test_probes_are_not_logged(served: Server, capsys: pytest.CaptureFixture[str]) -> None:
    for path in ("/health", "/ping", "/metrics"):
        assert served.http.get(path).status_code == 200
    assert _lines(capsys.readouterr().err) == []


@pytest.mark.usefixtures("_logs")
def test_a_crash_is_answered_with_the_id_and_logged_with_its_cause(
    served: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash() -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(served.engine, "capabilities", crash)
    reply = served.http.get("/v1/engine/capabilities", headers={"X-Request-ID": ID})
    assert (reply.status_code, reply.json()["trace_id"]) == (500, ID)
    assert "secret" not in reply.text
    failed, ended = _two_lines(capsys)
    assert "secret detail" in failed["exception"]
    assert (ended["level"], ended["status"], ended["request_id"]) == ("warning", 500, ID)
