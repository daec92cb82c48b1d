"""A server that is not ours is seen by its page of metrics, over real HTTP."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from api.observed.watcher import Watcher
from api.web.settings import ServiceSettings
from store import Database
from store.models import Heartbeat
from tests.api.observed.pages import Answer, Pages, page, send, serving
from tests.api.worlds import context_of
from tests.tuner.servers.test_target import STAND_IN, WAIT_S
from tuner.servers.process import ServerProcess, free_port

Json = dict[str, Any]
MAX_BYTES = 20_000


@pytest.fixture(autouse=True)
def _little_room(settings: ServiceSettings) -> None:
    """Pages may be short only, and take long."""
    settings.observe_max_bytes, settings.observe_timeout_s = MAX_BYTES, WAIT_S


@pytest.fixture(scope="module")
def stand_in() -> Iterator[str]:
    """A server that speaks vLLM's API; its address."""
    port = free_port()
    words = [sys.executable, str(STAND_IN), "--model", "m", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with ServerProcess(words, grace_s=1.0) as server:
        server.wait_healthy(f"{url}/health", timeout_s=WAIT_S)
        yield url


@pytest.fixture(scope="module")
def all_pages() -> Iterator[Pages]:
    with serving() as pages:
        yield pages


@pytest.fixture
def pages(all_pages: Pages) -> Pages:
    all_pages.asked.clear()
    return all_pages


@pytest.fixture
def watcher(client: TestClient) -> Watcher:
    return Watcher(context_of(client))


def observe(client: TestClient, url: str, **changes: Any) -> str:
    """Have the service look at ``url``; the engine's id."""
    body = {"name": "chat", "system": "vllm", "url": url, "plan": "tp=1", **changes}
    answer = client.post("/v1/engines:observe", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def observation(client: TestClient, engine_id: str) -> Json:
    answer = client.get(f"/v1/engines/{engine_id}/observation")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def ask(url: str, num_requests: int, *, input_tokens: int = 8, output_tokens: int = 4) -> None:
    """Send so many requests at once, and wait for their answers."""
    body = {"prompt": [1] * input_tokens, "max_tokens": output_tokens}

    def send_one(_: int) -> int:
        return httpx.post(f"{url}/v1/completions", json=body, timeout=WAIT_S).status_code

    with ThreadPoolExecutor(num_requests) as senders:
        assert set(senders.map(send_one, range(num_requests))) == {200}


def test_load_latencies_and_attainment_of_a_server_are_seen(
    client: TestClient, watcher: Watcher, stand_in: str
) -> None:
    engine_id = observe(client, stand_in, sla="p95_ttft_ms<=5000,p95_tpot_ms<=5000")
    assert observation(client, engine_id)["sight"] == "new"
    watcher.tick()
    ask(stand_in, 6)
    watcher.tick()
    seen = observation(client, engine_id)
    assert (seen["sight"], seen["running"], seen["waiting"]) == ("seen", 0, 0)
    assert (seen["mean_input_tokens"], seen["mean_output_tokens"]) == (8.0, 4.0)
    assert seen["arrived_rps"] * seen["window_s"] == pytest.approx(6)
    assert seen["generation_tokens_per_s"] * seen["window_s"] == pytest.approx(24)
    assert seen["attainment"] == {"low": 1.0, "value": 1.0, "high": 1.0}
    assert seen["is_sla_met"] is True
    assert 0 < seen["metrics"]["p95_ttft_ms"] <= 5000
    engine = client.get(f"/v1/engines/{engine_id}").json()
    assert (engine["system"], engine["is_alive"]) == ("vllm", True)
    assert 'gearshift_slo_attainment_ratio{engine="chat"' in client.get("/metrics").text


def test_counters_that_begin_anew_are_a_restart_and_no_load(
    client: TestClient, watcher: Watcher, pages: Pages
) -> None:
    engine_id = observe(client, pages.url)
    for finished, sight in ((900, "seen"), (3, "restarted"), (7, "seen")):
        pages.answer = lambda handler, n=finished: send(handler, page(finished=n))
        watcher.tick()
        assert observation(client, engine_id)["sight"] == sight
    seen = observation(client, engine_id)
    assert seen["restarted_at"] is not None
    assert seen["arrived_rps"] * seen["window_s"] == pytest.approx(4)
    assert "tpot_ms" in seen["missing"]


def dribble(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(1000):  # until the other side has enough
        handler.wfile.write(b"# slow\n")
        time.sleep(0.02)


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"vllm:x 1\n" * 1000)


@pytest.mark.parametrize(
    ("answer", "sight", "detail"),
    [
        (dribble, "timed_out", "no whole answer within 0.3 s"),
        (endless, "too_large", f"longer than {MAX_BYTES} bytes"),
        (lambda h: send(h, "", status=302, location="http://127.0.0.1:1/"), "redirected", "302"),
        (lambda h: send(h, "who are you", status=401), "refused", "answered 401"),
        (lambda h: send(h, "vllm:num_requests_running{ oh"), "unreadable", "cannot be read"),
        (lambda h: send(h, "<html>hello</html>"), "no_series", "finished, running, waiting"),
        (lambda h: h.wfile.write(b"\x00\xff garbage\r\n"), "unreachable", ""),
    ],
    ids=["slow", "huge", "redirecting", "refusing", "garbage", "another", "no_http"],
)
def test_a_page_that_cannot_be_used_is_a_condition_and_no_load(
    client: TestClient,
    watcher: Watcher,
    pages: Pages,
    database: Database,
    settings: ServiceSettings,
    answer: Answer,
    sight: str,
    detail: str,
) -> None:
    if answer is dribble:
        settings.observe_timeout_s = 0.3
    engine_id = observe(client, pages.url)
    pages.answer = answer
    watcher.tick()
    first = observation(client, engine_id)
    assert (first["sight"], detail in first["detail"]) == (sight, True), first
    watcher.tick()
    assert observation(client, engine_id)["since"] == first["since"]
    with database.read() as uow:
        assert uow.session.scalar(sa.select(sa.func.count(Heartbeat.id))) == 0


def test_a_server_that_is_not_there_is_unreachable_and_others_are_still_seen(
    client: TestClient, watcher: Watcher, pages: Pages
) -> None:
    gone = observe(client, "http://127.0.0.1:1", name="gone")
    there = observe(client, pages.url, name="there")
    pages.answer = lambda handler: send(handler, page(finished=5))
    watcher.tick()
    assert observation(client, gone)["sight"] == "unreachable"
    assert observation(client, there)["sight"] == "seen"
    assert client.get(f"/v1/engines/{gone}").json()["is_alive"] is False


@pytest.mark.parametrize("host", [f"{'a' * 64}.example", "a..example", "a\u2603.example"])
def test_a_name_that_no_host_can_have_blinds_nobody_to_the_others(
    client: TestClient, watcher: Watcher, pages: Pages, database: Database, host: str
) -> None:
    wrong = observe(client, "http://127.0.0.1:1", name="wrong")
    with database.begin() as uow:  # as versions before this one took it
        uow.servers.get(wrong).url = f"http://{host}:8000"
    there = observe(client, pages.url, name="there")
    pages.answer = lambda handler: send(handler, page(finished=5))
    watcher.tick()
    assert observation(client, wrong)["sight"] == "unreachable"
    assert observation(client, there)["sight"] == "seen"


def test_a_server_that_a_fault_of_ours_hides_hides_no_other(
    client: TestClient, watcher: Watcher, pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = observe(client, "http://127.0.0.1:1", name="hidden")
    there = observe(client, pages.url, name="there")
    pages.answer = lambda handler: send(handler, page(finished=5))
    token = Watcher._token

    def fail_for_one(self: Watcher, target: Any) -> str | None:
        if target.engine_id == hidden:
            raise ZeroDivisionError("a bug of ours")
        return token(self, target)

    monkeypatch.setattr(Watcher, "_token", fail_for_one)
    watcher.tick()
    assert "could not be looked at" in observation(client, hidden)["detail"]
    assert observation(client, there)["sight"] == "seen"


@pytest.mark.parametrize("url", [f"http://{'a' * 64}.example", "http://a..b", "http://h:99999"])
def test_an_address_that_cannot_be_is_refused(client: TestClient, url: str) -> None:
    body = {"name": "chat", "system": "vllm", "url": url, "plan": "tp=1"}
    answer = client.post("/v1/engines:observe", json=body)
    assert answer.status_code == 422
    assert "its port cannot be" in answer.text


def test_what_came_while_nobody_looked_is_not_known(
    client: TestClient, watcher: Watcher, pages: Pages, database: Database
) -> None:
    engine_id = observe(client, pages.url)
    pages.answer = lambda handler: send(handler, page(finished=5))
    watcher.tick()
    with database.begin() as uow:
        row = uow.servers.get(engine_id)
        row.page = {**dict(row.page or {}), "at_s": time.time() - 7 * 3600}
    pages.answer = lambda handler: send(handler, page(finished=5000))
    watcher.tick()
    seen = observation(client, engine_id)
    assert (seen["sight"], seen["arrived_rps"]) == ("seen", None)


def test_a_token_goes_to_the_address_that_the_operator_named_and_is_kept_nowhere(
    client: TestClient,
    watcher: Watcher,
    pages: Pages,
    settings: ServiceSettings,
    database: Database,
    tmp_path: Path,
) -> None:
    secret = "token-of-the-metrics"
    (tmp_path / "token").write_text(f"{secret}\n")
    file = tmp_path / "servers.yml"
    file.write_text(f"chat:\n  url: {pages.url}\n  token_file: {tmp_path / 'token'}\n")
    settings.servers_file = file
    pages.answer = lambda handler: send(handler, page(finished=5))
    engine_id = observe(client, pages.url)
    watcher.tick()
    assert pages.asked == [("/metrics", f"Bearer {secret}")]
    observe(client, f"{pages.url}/elsewhere".replace("127.0.0.1", "localhost"))
    watcher.tick()
    assert pages.asked[1:] == [("/elsewhere/metrics", None)]
    told = client.get(f"/v1/engines/{engine_id}/observation").text
    with database.read() as uow:
        tables = sa.inspect(database.engine).get_table_names()
        kept = [uow.session.execute(sa.text(f"SELECT * FROM {name}")).all() for name in tables]
    assert secret not in told + str(kept)


def test_an_observed_server_is_forgotten(
    client: TestClient, watcher: Watcher, pages: Pages
) -> None:
    engine_id = observe(client, pages.url)
    assert client.post(f"/v1/engines/{engine_id}:deregister").status_code == 204
    watcher.tick()
    assert pages.asked == []
    assert client.get(f"/v1/engines/{engine_id}/observation").status_code == 404


def test_a_server_whose_row_cannot_be_read_hides_no_other(
    client: TestClient, watcher: Watcher, pages: Pages, database: Database
) -> None:
    broken, sound = observe(client, pages.url, name="broken"), observe(client, pages.url)
    pages.answer = lambda handler: send(handler, page(finished=3))
    watcher.tick()
    with database.begin() as uow:
        row = uow.servers.get(broken)
        row.page = {"of": "another version"}
    with capture_logs() as lines:
        watcher.tick()
        watcher.tick()
    assert observation(client, sound)["window_s"] is not None
    told = [line for line in lines if line["event"] == "turn failed"]
    assert len(told) == 1
    assert broken in told[0]["key"]


def test_who_observes_a_server_anew_while_it_is_looked_at_waits_and_is_answered(
    client: TestClient, watcher: Watcher, pages: Pages, database: Database
) -> None:
    """Both change the engine and its server: in one order, or each would wait for the other."""
    engine_id = observe(client, pages.url)
    pages.answer = lambda handler: send(handler, page(finished=3))
    watcher.tick()
    with ThreadPoolExecutor(1) as others:
        with database.begin() as uow:
            uow.engines.get(engine_id, for_update=True)
            looking = others.submit(watcher.tick)
            time.sleep(0.5)  # by now it wants the engine, and must not have its server
            server = uow.servers.find(engine_id, for_update=True)
            assert server is not None
            server.model = "another"
        looking.result(WAIT_S)
    with database.read() as uow:
        assert uow.servers.get(engine_id).model == "another"
    assert observation(client, engine_id)["window_s"] is not None
