"""OpenTelemetry as an option: on if its own variables name a collector, else free of cost.

OpenTelemetry's SDK is an extra of the package (``otel``), and imported only when it is on.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import structlog

from engine.server.spans import Traces

ENGINE_SERVICE = "gearshift-engine"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
SPAN_ENDPOINTS = (ENDPOINT, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
METRIC_ENDPOINTS = (ENDPOINT, "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")


def find_traces(
    service: str, *, instance: str = "", environ: Mapping[str, str] | None = None
) -> Traces | None:
    """Traces of ``service``, where the environment names a collector; None where it does not.

    ``instance`` tells servers of one service apart. Where the packages are missing, one line says
    so, and the server goes without.
    """
    environ = os.environ if environ is None else environ
    is_off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    sends_spans = any(environ.get(name) for name in SPAN_ENDPOINTS)
    sends_latencies = any(environ.get(name) for name in METRIC_ENDPOINTS)
    if is_off or not (sends_spans or sends_latencies):
        return None
    try:
        from engine.server.otel import OtelTraces
    except ImportError as error:
        structlog.get_logger("engine.server.traces").warning(
            "no traces are sent: install gearshift[otel]", missing=error.name
        )
        return None
    return OtelTraces(
        service, instance=instance, sends_spans=sends_spans, sends_latencies=sends_latencies
    )
