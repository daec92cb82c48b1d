"""More requests than the policy admits: 429, when to come back, and who is turned away first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.spec.settings import Caps
from tests.engine.server.conftest import MODEL, Server, refusal, serving, simulated_engine
from tests.waiting import wait_until

# So slow that nothing is filled up while a test runs; and so fast that it is full again at once.
SLOW_RPS, FAST_RPS = 0.01, 1e6
BURST = 4


@pytest.fixture(scope="module")
def served(tiny_dir: Path) -> Iterator[Server]:
    """Steps of 10 ms, requests in the order of their priority."""
    with (
        simulated_engine(tiny_dir, step_s=0.01, caps=Caps(max_num_seqs=16)) as engine,
        serving(engine, tiny_dir) as server,
    ):
        patch(server, {"scheduler": {"order": "priority"}})
        yield server


@pytest.fixture
def full(served: Server) -> Iterator[Server]:
    """A server whose bucket is full; afterwards it lets in whatever comes."""
    admit(served, FAST_RPS)
    yield served
    patch(served, {"admission": None})


def patch(server: Server, body: dict[str, Any], *, is_dry_run: bool = False) -> dict[str, Any]:
    url = f"/v1/engine/policy{'?dry_run=true' if is_dry_run else ''}"
    answer = server.http.patch(url, json=body, headers={"if-match": "*"})
    assert answer.status_code == 200, answer.text
    changed: dict[str, Any] = answer.json()
    return changed


def admit(server: Server, rate_rps: float, burst: int = BURST) -> None:
    patch(server, {"admission": {"rate_rps": rate_rps, "burst_requests": burst}})


def ask(server: Server, **body: object) -> httpx.Response:
    return server.complete(prompt="x", max_tokens=1, **body)


def metric(server: Server, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(server.http.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    return None


def test_what_is_more_than_admitted_gets_a_429_that_says_when_to_come_back(full: Server) -> None:
    refused = "gearshift_requests_refused_total"
    before = metric(full, refused, reason="admission") or 0.0
    admit(full, SLOW_RPS)
    assert [ask(full).status_code for _ in range(BURST)] == [200] * BURST
    reply = ask(full)
    assert refusal(reply, 429)["code"] == "overloaded"
    assert refusal(reply, 429)["type"] == "rate_limit_error"
    assert 90 <= int(reply.headers["retry-after"]) <= 1 / SLOW_RPS
    assert reply.headers["x-request-id"]
    assert metric(full, refused, reason="admission") == before + 1
    assert metric(full, "gearshift_admitted_requests_per_second") == SLOW_RPS
    admit(full, FAST_RPS)
    assert ask(full).status_code == 200
    patch(full, {"admission": None})
    assert metric(full, "gearshift_admitted_requests_per_second") == math.inf


def test_the_urgent_come_in_where_others_are_turned_away(full: Server) -> None:
    admit(full, SLOW_RPS)
    assert ask(full, priority=-1).status_code == 200
    answers = [ask(full, priority=priority).status_code for priority in (5, 5, 5, -1, 5, -1, -1)]
    assert answers == [200, 429, 429, 200, 429, 200, 429]


def test_choices_of_one_call_come_in_together_or_not_at_all(full: Server) -> None:
    admit(full, SLOW_RPS)
    assert ask(full, n=3).status_code == 200
    assert ask(full, n=2).status_code == 429
    assert ask(full).status_code == 200
    assert full.engine.stats().running + full.engine.stats().waiting == 0


def test_a_call_that_the_queue_has_no_room_for_counts_with_all_its_choices(full: Server) -> None:
    refused, objectives = "gearshift_requests_refused_total", "gearshift_slo_requests_total"
    before = metric(full, refused, reason="queue_full") or 0.0
    patch(full, {"caps": {"max_num_seqs": 1, "max_queue": 2}})
    body = {"model": MODEL, "prompt": "x", "max_tokens": 500, "ignore_eos": True, "stream": True}
    with full.http.stream("POST", "/v1/completions", json=body) as running:
        lines = running.iter_lines()  # kept: the connection is closed with its iterator
        next(lines)
        full.http.headers["x-slo-ttft-ms"] = "900"
        answer = ask(full, n=5)
        del full.http.headers["x-slo-ttft-ms"]
        assert answer.status_code == 429
        assert "0 requests wait, 5 come together, max_queue is 2" in answer.text
    wait_until(lambda: full.engine.stats().running == 0)
    assert ask(full, n=3).status_code == 200  # one runs, two wait
    patch(full, {"caps": {"max_num_seqs": 16, "max_queue": None}})
    assert metric(full, refused, reason="queue_full") == before + 5
    assert metric(full, objectives, outcome="errored") == 5
    assert metric(full, objectives, outcome="cut") == 0


def test_a_stream_that_was_accepted_goes_on_whatever_is_admitted_then(full: Server) -> None:
    body = {"model": MODEL, "prompt": "x", "max_tokens": 30, "ignore_eos": True, "stream": True}
    body["stream_options"] = {"include_usage": True}
    with full.http.stream("POST", "/v1/completions", json=body) as running:
        lines = running.iter_lines()
        next(lines)
        admit(full, SLOW_RPS, burst=2)
        while ask(full).status_code == 200:
            pass
        chunks = [line for line in lines if line.startswith("data: {")]
    assert '"completion_tokens":30' in chunks[-1]
    assert '"finish_reason":"length"' in chunks[-2]


def test_a_dry_run_tells_the_change_and_capabilities_the_range(full: Server) -> None:
    before = full.http.get("/v1/engine/policy").json()["admission"]["rate_rps"]
    told = patch(full, {"admission": {"rate_rps": 2.5}}, is_dry_run=True)
    assert told["diff"] == [
        {"knob": "admission.rate_rps", "from": before, "to": 2.5, "class": "hot"}
    ]
    knobs = {k["name"]: k for k in full.http.get("/v1/engine/capabilities").json()["knobs"]}
    assert knobs["admission.rate_rps"]["class"] == "hot"
    assert knobs["admission.rate_rps"]["current"] == before
    assert knobs["admission.burst_requests"]["minimum"] == 2


def test_a_burst_without_a_rate_is_refused_by_name(full: Server) -> None:
    answer = full.http.patch(
        "/v1/engine/policy", json={"admission": {"rate_rps": None}}, headers={"if-match": "*"}
    )
    assert answer.status_code == 422
    assert "/admission/rate_rps: missing beside burst_requests" in answer.json()["detail"]
