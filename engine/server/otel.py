"""Spans and GenAI metrics by OpenTelemetry's SDK, sent by OTLP over HTTP.

The SDK reads from its ``OTEL_*`` variables where to send, what to sample and the service's name.
Names: OpenTelemetry's semantic conventions for HTTP and for generative AI.
"""

from __future__ import annotations

import os
import time
from importlib.metadata import version

import structlog
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.server.request_log import QUIET_PATHS
from engine.server.spans import AskedCall, CallSpan, EndedRequest, Traces

SCOPE = "gearshift"
PROVIDER = "gearshift"
# A collector that does not answer must not hold up the end of a server.
TIMEOUT_S = 3
CLOSE_TIMEOUT_MS = 3000
# As the conventions advise for both histograms of latency.
TTFT_BOUNDS_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 10)
TPOT_BOUNDS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
DURATION_BOUNDS_S = tuple(0.01 * 2**power for power in range(14))
PROPAGATOR = TraceContextTextMapPropagator()


class OtelTraces(Traces):
    """Traces by the SDK, with providers of its own: nothing global is set. For what it is told to
    send, the SDK finds the collector: where none is named, on this machine."""

    def __init__(
        self, service: str, *, instance: str, sends_spans: bool, sends_latencies: bool
    ) -> None:
        resource = _resource(service, instance)
        self._tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
        if sends_spans:
            exporter = OTLPSpanExporter(timeout=_timeout_s())
            self._tracers.add_span_processor(BatchSpanProcessor(exporter))
        readers: list[PeriodicExportingMetricReader] = []
        if sends_latencies:
            latencies = OTLPMetricExporter(timeout=_timeout_s())
            readers.append(PeriodicExportingMetricReader(latencies))
        self._meters = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
        self._tracer = self._tracers.get_tracer(SCOPE)
        meter = self._meters.get_meter(SCOPE)
        self._ttft_s = meter.create_histogram(
            "gen_ai.server.time_to_first_token",
            unit="s",
            explicit_bucket_boundaries_advisory=TTFT_BOUNDS_S,
        )
        self._tpot_s = meter.create_histogram(
            "gen_ai.server.time_per_output_token",
            unit="s",
            explicit_bucket_boundaries_advisory=TPOT_BOUNDS_S,
        )
        self._duration_s = meter.create_histogram(
            "gen_ai.server.request.duration",
            unit="s",
            explicit_bucket_boundaries_advisory=DURATION_BOUNDS_S,
        )

    def wrap(self, app: ASGIApp) -> ASGIApp:
        return _TracedRequests(app, self._tracer)

    def begin_call(self, asked: AskedCall) -> CallSpan:
        return _OtelCall(self, asked, trace.get_current_span())

    def observe(self, asked: AskedCall, ended: EndedRequest) -> None:
        """Take in a request's latencies; time to first token and time per token only of whole
        requests."""
        attributes = {
            "gen_ai.operation.name": asked.operation,
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": asked.model_name,
            "gen_ai.response.model": asked.model_name,
        }
        duration_s = ended.last_s - ended.arrival_s
        if not ended.reason.is_whole:
            self._duration_s.record(duration_s, {**attributes, "error.type": ended.reason.value})
            return
        self._duration_s.record(duration_s, attributes)
        if ended.first_s is not None:
            self._ttft_s.record(ended.first_s - ended.arrival_s, attributes)
            if ended.output_tokens > 1:
                tpot_s = (ended.last_s - ended.first_s) / (ended.output_tokens - 1)
                self._tpot_s.record(tpot_s, attributes)

    def add_phases(self, parent: Span, ended: EndedRequest) -> None:
        """A span for each part of a request's life that it reached."""
        stamps = (ended.arrival_s, ended.scheduled_s, ended.first_s, ended.last_s)
        # Stamps are monotonic; spans want the time of day.
        shift_ns = time.time_ns() - time.monotonic_ns()
        context = trace.set_span_in_context(parent)
        for name, begin_s, end_s in zip(
            ("queue", "prefill", "decode"), stamps, stamps[1:], strict=False
        ):
            if begin_s is None:
                return
            until_s = ended.last_s if end_s is None else end_s
            begin_ns, end_ns = (int(stamp_s * 1e9) + shift_ns for stamp_s in (begin_s, until_s))
            self._tracer.start_span(name, context, start_time=begin_ns).end(end_ns)

    def close(self) -> None:
        self._tracers.shutdown()
        self._meters.shutdown(CLOSE_TIMEOUT_MS)


class _OtelCall(CallSpan):
    """One HTTP call on its way through the engine; its requests end one after another."""

    def __init__(self, traces: OtelTraces, asked: AskedCall, span: Span) -> None:
        self._traces = traces
        self._asked = asked
        self._span = span
        self._reasons: list[str] = []
        self._output_tokens = 0
        span.set_attributes(
            {
                "gen_ai.operation.name": asked.operation,
                "gen_ai.provider.name": PROVIDER,
                "gen_ai.request.model": asked.model_name,
                "gen_ai.request.max_tokens": asked.max_tokens,
                "gen_ai.request.temperature": asked.temperature,
                "gen_ai.request.top_p": asked.top_p,
                "gen_ai.request.choice.count": asked.num_choices,
                "gen_ai.request.stream": asked.is_stream,
                "gen_ai.response.id": asked.response_id,
                "gen_ai.response.model": asked.model_name,
            }
        )

    def end_request(self, ended: EndedRequest) -> None:
        self._reasons.append(ended.reason.value)
        # Of the token that is made for an echo alone (max_tokens 0), its answer tells nothing.
        self._output_tokens += min(ended.output_tokens, self._asked.max_tokens)
        if self._span.is_recording():  # else its client has gone, and it has ended before this
            self._span.set_attributes(
                {
                    "gen_ai.response.finish_reasons": self._reasons,
                    "gen_ai.usage.input_tokens": self._asked.prompt_tokens,
                    "gen_ai.usage.output_tokens": self._output_tokens,
                }
            )
        self._traces.add_phases(self._span, ended)
        self._traces.observe(self._asked, ended)


class _TracedRequests:
    """A span for each request to ``app`` but those that machines send all the time."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].endswith(QUIET_PATHS):
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        headers = Headers(scope=scope)
        span = self._tracer.start_span(
            method,
            PROPAGATOR.extract(dict(headers.items())),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method, "url.path": scope["path"]},
        )

        async def send_noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                span.set_attribute("http.response.status_code", message["status"])
                if message["status"] >= 500:
                    span.set_status(Status(StatusCode.ERROR))
            await send(message)

        found = span.get_span_context()
        ids = {"trace_id": f"{found.trace_id:032x}", "span_id": f"{found.span_id:016x}"}
        try:
            with trace.use_span(span), structlog.contextvars.bound_contextvars(**ids):
                await self._app(scope, receive, send_noted)
        finally:
            route = getattr(scope.get("route"), "path", None)
            if route is not None:
                span.update_name(f"{method} {route}")
                span.set_attribute("http.route", route)
            span.end()


def _resource(service: str, instance: str) -> Resource:
    attributes = {"service.version": version("gearshift")}
    if "OTEL_SERVICE_NAME" not in os.environ:
        attributes["service.name"] = service
    if instance:
        attributes["service.instance.id"] = instance
    return Resource.create(attributes)


def _timeout_s() -> float | None:
    """None: as the SDK's own variable says."""
    return None if "OTEL_EXPORTER_OTLP_TIMEOUT" in os.environ else TIMEOUT_S
