"""The service logs each request with the id that its answer, the audit and problems have."""

from __future__ import annotations

import json

import pytest
import structlog
from starlette.testclient import TestClient

from engine.logs import configure_logs
from tests.api.worlds import register


def test_log_and_audit_name_a_request_by_the_id_its_caller_gave(
    client: TestClient, capsys: pytest.CaptureFixture[str]
) -> None:
    before = structlog.get_config()
    configure_logs("info")
    try:
        capsys.readouterr()
        client.headers["X-Request-ID"] = "req-7"
        engine_id = register(client)
        refused = client.get("/v1/engines/eng_none")
    finally:
        structlog.configure(**before)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["event"], line["status"], line["request_id"]) for line in lines] == [
        ("request", 201, "req-7"),
        ("request", 404, "req-7"),
    ]
    assert refused.json()["trace_id"] == refused.headers["x-request-id"] == "req-7"
    audit = client.get("/v1/audit", params={"resource": f"engines/{engine_id}"}).json()
    assert audit[0]["request_id"] == "req-7"
