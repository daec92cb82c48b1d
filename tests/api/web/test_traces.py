"""The service's requests are spans of their callers' traces, where a collector is named."""

from __future__ import annotations

import json

import pytest
import structlog
from starlette.testclient import TestClient

from api.app import create_app
from api.web.settings import ServiceSettings
from engine.logs import configure_logs
from store import Database
from tests.api.conftest import ADMIN
from tests.collector import collecting

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


def test_a_request_to_the_service_is_a_span_and_its_log_line_names_the_trace(
    settings: ServiceSettings,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    headers = {"Authorization": f"Bearer {ADMIN}", "traceparent": f"00-{TRACE}-{PARENT}-01"}
    before = structlog.get_config()
    configure_logs("info")
    try:
        with collecting() as collector:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
            with TestClient(create_app(settings), headers=headers) as client:
                client.get("/healthz")
                client.get("/v1/engines/eng_none")
    finally:
        structlog.configure(**before)
    (span,) = collector.spans
    assert (span.name, span.service) == ("GET /v1/engines/{engine_id}", "gearshift-service")
    assert (span.trace_id, span.parent_id) == (TRACE, PARENT)
    assert span.attributes["http.response.status_code"] == 404
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (logged,) = [line for line in lines if line["event"] == "request"]
    assert (logged["trace_id"], logged["span_id"]) == (TRACE, span.span_id)
