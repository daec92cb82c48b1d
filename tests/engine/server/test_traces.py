"""Traces reach a real collector, and cost nothing where none is named."""

from __future__ import annotations

import importlib.util
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.server.spans import AskedCall, EndedRequest, Traces
from engine.server.traces import find_traces
from engine.spec.request import FinishReason
from tests.engine.server.conftest import (
    MODEL,
    Server,
    serving,
    simulated_engine,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("opentelemetry.sdk") is None, reason="the extra 'otel' is not here"
)
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
BODY = {"model": MODEL, "prompt": [5, 6, 7], "max_tokens": 4, "temperature": 0.5}

ASKED = AskedCall(
    operation="chat",
    model_name=MODEL,
    response_id="x",
    max_tokens=1,
    temperature=0.0,
    top_p=1.0,
    num_choices=1,
    prompt_tokens=1,
    is_stream=False,
)
ENDED = EndedRequest(
    arrival_s=0.0,
    scheduled_s=None,
    first_s=None,
    last_s=1.0,
    output_tokens=0,
    reason=FinishReason.ABORT,
)


@pytest.fixture
def engine_server(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple]:
    from tests.collector import collecting

    with collecting() as collector, simulated_engine(tiny_dir, step_s=0.005) as engine:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        traces = find_traces("gearshift-engine", instance="7")
        assert traces is not None
        with serving(engine, tiny_dir, traces=traces) as server:
            yield server, collector, traces


def _close(server: Server, traces: Traces) -> None:
    """Close after another call, a probe without a span: a call's span ends behind its answer."""
    server.http.get("/metrics")
    traces.close()


def test_a_completion_is_a_span_of_its_callers_trace_with_the_parts_of_its_life(
    engine_server: tuple,
) -> None:
    server, collector, traces = engine_server
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    reply = server.http.post("/v1/completions", json=BODY | {"n": 2}, headers=headers)
    _close(server, traces)
    call = collector.named("POST /v1/completions")
    assert (call.trace_id, call.parent_id, call.service) == (TRACE, PARENT, "gearshift-engine")
    assert call.attributes["http.response.status_code"] == 200
    told = {name.removeprefix("gen_ai."): value for name, value in call.attributes.items()}
    assert told["operation.name"] == "text_completion"
    assert told["request.model"] == MODEL
    assert (told["request.temperature"], told["request.max_tokens"]) == (0.5, 4)
    assert told["response.id"] == reply.json()["id"]
    assert told["response.finish_reasons"] == ["length", "length"]
    usage = reply.json()["usage"]
    assert told["usage.input_tokens"] == usage["prompt_tokens"] == 3
    assert told["usage.output_tokens"] == usage["completion_tokens"] == 8
    parts = [span for span in collector.spans if span.parent_id == call.span_id]
    assert sorted(span.name for span in parts) == ["decode"] * 2 + ["prefill"] * 2 + ["queue"] * 2
    assert {span.trace_id for span in parts} == {TRACE}
    for span in parts:
        assert call.begin_ns <= span.begin_ns <= span.end_ns <= call.end_ns
    assert len(collector.spans) == 7
    for name in ("time_to_first_token", "time_per_output_token", "request.duration"):
        count, seconds = collector.latencies[f"gen_ai.server.{name}"]
        assert count == 2
        assert seconds > 0


def test_without_a_traceparent_a_call_begins_a_trace_and_a_refusal_has_a_span_too(
    engine_server: tuple,
) -> None:
    server, collector, traces = engine_server
    asked = {"model": MODEL, "max_tokens": 2, "messages": [{"role": "user", "content": "x"}]}
    with server.http.stream("POST", "/v1/chat/completions", json=asked | {"stream": True}) as chat:
        assert chat.read()
    assert server.http.post("/v1/completions", json={}).status_code == 400
    _close(server, traces)
    call, refused = (
        collector.named("POST /v1/chat/completions"),
        collector.named("POST /v1/completions"),
    )
    assert call.parent_id == ""
    assert call.attributes["gen_ai.operation.name"] == "chat"
    assert call.attributes["gen_ai.request.stream"] is True
    assert refused.attributes["http.response.status_code"] == 400
    assert refused.trace_id != call.trace_id


def test_the_token_behind_an_echo_alone_is_in_no_span(engine_server: tuple) -> None:
    server, collector, traces = engine_server
    reply = server.http.post("/v1/completions", json=BODY | {"max_tokens": 0, "echo": True})
    _close(server, traces)
    told = collector.named("POST /v1/completions").attributes
    assert (told["gen_ai.request.max_tokens"], told["gen_ai.usage.output_tokens"]) == (0, 0)
    assert reply.json()["usage"]["completion_tokens"] == 0


def test_a_call_that_its_client_left_has_a_span_without_a_warning(engine_server: tuple) -> None:
    server, collector, traces = engine_server
    body = BODY | {"max_tokens": 900, "ignore_eos": True, "stream": True}
    with server.http.stream("POST", "/v1/completions", json=body) as leaving:
        next(leaving.iter_lines())
    ended = 'vllm:request_generation_tokens_count{engine="0",model_name="tiny"} 1.0'
    wait_until(lambda: ended in server.http.get("/metrics").text)
    traces.close()
    call = collector.named("POST /v1/completions")
    assert call.attributes["http.response.status_code"] == 200
    assert "gen_ai.server.time_to_first_token" not in collector.latencies


def test_where_a_collector_of_spans_alone_is_named_latencies_are_sent_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:1/v1/traces")
    traces = find_traces("gearshift-engine")
    assert traces is not None
    traces.observe(ASKED, ENDED)
    traces.close()
    assert not [record for record in caplog.records if "metric" in record.name]


def test_where_a_collector_of_latencies_alone_is_named_they_come_and_spans_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tests.collector import collecting

    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"{collector.url}/v1/metrics")
        traces = find_traces("gearshift-engine")
        assert traces is not None
        traces.observe(ASKED, ENDED)
        traces.close()
    assert collector.latencies["gen_ai.server.request.duration"] == (1, 1.0)
    assert collector.spans == []


def test_where_no_collector_is_named_there_are_no_traces() -> None:
    assert find_traces("x", environ={}) is None
    named = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}
    assert find_traces("x", environ=named) is None


def test_without_the_packages_a_server_goes_without_traces(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "engine.server.otel", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    named = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    assert find_traces("x", environ=named) is None
    captured = capsys.readouterr()
    assert "gearshift[otel]" in captured.out + captured.err


@pytest.mark.slow
def test_a_collector_that_is_away_holds_up_neither_requests_nor_the_end(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv(
            "OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}"
        )
        traces = find_traces("gearshift-engine")
        assert traces is not None
        with (
            simulated_engine(tiny_dir, step_s=0.001) as engine,
            serving(engine, tiny_dir, traces=traces) as server,
        ):
            assert server.http.post("/v1/completions", json=BODY).status_code == 200
        begun_s = time.monotonic()
        traces.close()
        assert time.monotonic() - begun_s < 30
