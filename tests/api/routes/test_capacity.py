"""The load that settings carry, over REST."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

Json = dict[str, Any]
ASKED: Json = {
    "model": "llama-3.1-8b",
    "hardware": "1xh100",
    "max_model_len": 4096,
    "settings": {"plan": {"tp": 1}},
    "workload": "poisson:rate=40,input=512,output=16,requests=60",
    "sla": "p95_ttft_ms<=300,p95_tpot_ms<=30",
    "draws": 2,
}


def test_it_tells_the_rate_its_interval_and_what_binds(client: TestClient) -> None:
    answer = client.post("/v1/capacity", json=ASKED)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    found = told["capacity"]
    assert found["low"]["factor"] <= found["load"]["factor"] <= found["high"]["factor"]
    assert found["binding"] in ("p95_ttft_ms<=300", "p95_tpot_ms<=30")
    assert told["settings"]["caps"]["max_num_seqs"] > 64, "the backend's own"


@pytest.mark.parametrize(
    ("changes", "pointer", "told"),
    [
        ({"model": "/etc"}, "/model", "GET /v1/models"),
        ({"hardware": "8xabacus"}, "/hardware", "abacus"),
        ({"settings": {"plan": {"tp": 0}}}, "/settings", "tp=0"),
        ({"workload": "csv:/etc/passwd"}, "/workload", "traces are not taken here"),
        ({"sla": "fast"}, "/sla", "fast"),
        ({"backend": "x"}, "/backend", "known are"),
        ({"settings": {"plan": {"tp": 4}}}, "", "4"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_name(
    client: TestClient, changes: Json, pointer: str, told: str
) -> None:
    answer = client.post("/v1/capacity", json={**ASKED, **changes})
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    assert error["pointer"] == pointer
    assert told in error["detail"]


def test_it_needs_a_key(anonymous: TestClient) -> None:
    assert anonymous.post("/v1/capacity", json=ASKED).status_code == 401
