"""The engine's HTTP server: OpenAI endpoints, health, metrics and the knob plane."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from engine.server.defaults import SamplingDefaults
from engine.server.description import DescribedApp, describe
from engine.server.errors import (
    UNHEALTHY_RETRY_S,
    answer_crash,
    install_error_handlers,
    respond,
)
from engine.server.gate import Gate
from engine.server.generation import GenerationService
from engine.server.keys import ServerKeys
from engine.server.knobs import KnobPlane, knob_router
from engine.server.metrics import ServerMetrics
from engine.server.openai_routes import chat_router, completion_router, model_router
from engine.server.pace import PacedAnswers
from engine.server.pages import add_docs
from engine.server.request_log import RequestLog
from engine.server.served import ServedEngine
from engine.server.shapes import HealthShape, VersionShape
from engine.server.spans import Traces
from engine.server.text_coder import TextCoder
from engine.server.tokens import token_router
from engine.spec.limits import RequestLimits
from engine.text.tokenizer import Tokenizer

OPEN_PATHS = ("/health", "/ping", "/version", "/metrics")
HEALTH: dict[int | str, dict[str, Any]] = {
    200: {"model": HealthShape},
    503: {"model": HealthShape, "description": "A replica has failed; others may serve"},
}


class Exposition(Response):
    """Metrics as Prometheus reads them."""

    media_type = CONTENT_TYPE_LATEST


def create_server(
    engine: ServedEngine,
    tokenizer: Tokenizer,
    *,
    model_name: str,
    keys: ServerKeys | None = None,
    engine_name: str = "0",
    defaults: SamplingDefaults | None = None,
    limits: RequestLimits | None = None,
    logs_requests: bool = False,
    traces: Traces | None = None,
) -> FastAPI:
    """The ASGI application in front of a started ``engine``.

    ``keys`` say what callers need as a bearer token for everything but :data:`OPEN_PATHS` and the
    pages of the API's description; by default nothing. The engine is neither started nor closed
    here. ``defaults`` stand in for what requests leave out; ``limits`` say what is taken of a
    client. Answers of 500 and more are logged, with ``logs_requests`` all others too. ``traces``
    get a span of each answer; the caller closes them. If no model is run, ``/version``, the model's
    owner and a header of every answer say so.
    """
    keys = keys or ServerKeys()
    app = DescribedApp(
        complete=describe(model_name, OPEN_PATHS, keys),
        title="Gearshift engine",
        summary="An OpenAI-compatible server of one model, and the knobs of its engine.",
        version=version("gearshift"),
        docs_url=None,
        redoc_url=None,
    )
    add_docs(app)
    install_error_handlers(app)
    _add_middleware(
        app, engine, keys=keys, limits=limits, logs_requests=logs_requests, traces=traces
    )
    metrics = ServerMetrics(engine, model_name=model_name, engine_name=engine_name)
    coder = TextCoder(engine, tokenizer)
    service = GenerationService(
        engine,
        tokenizer,
        metrics,
        model_name=model_name,
        defaults=defaults or SamplingDefaults(),
        traces=traces,
    )
    for router in (
        model_router(engine, model_name),
        completion_router(engine, coder, service, model_name),
        chat_router(engine, coder, service, model_name),
        token_router(engine, coder, model_name),
        knob_router(KnobPlane(engine, engine_name=engine_name)),
        _health_router(engine, metrics),
    ):
        # Its routes as they are: included, they are analysed again at the first requests.
        app.router.routes.extend(router.routes)
    return app


def _add_middleware(
    app: FastAPI,
    engine: ServedEngine,
    *,
    keys: ServerKeys,
    limits: RequestLimits | None,
    logs_requests: bool,
    traces: Traces | None,
) -> None:
    """What every request passes, innermost first: the one added last meets it first."""
    app.add_middleware(
        Gate,
        limits=limits or RequestLimits(),
        open_paths=OPEN_PATHS,
        admit=keys.admit,
        respond=respond,
    )
    app.add_middleware(
        RequestLog,
        logger="engine.request",
        answer_crash=answer_crash,
        logs_requests=logs_requests,
    )
    if engine.paced_as is not None:
        app.add_middleware(PacedAnswers, paced_as=engine.paced_as)
    if traces is not None:
        app.add_middleware(traces.wrap)


def _health_router(engine: ServedEngine, metrics: ServerMetrics) -> APIRouter:
    router = APIRouter(tags=["operation"])

    @router.get(
        "/ping", operation_id="ping", summary="Tell whether the engine is healthy", responses=HEALTH
    )
    @router.get(
        "/health",
        operation_id="getHealth",
        summary="Tell whether the engine is healthy",
        responses=HEALTH,
    )
    async def health() -> JSONResponse:
        """200 while every replica serves; 503, with when to ask again, once one has failed for
        good. Requests are taken as long as one serves."""
        is_healthy = engine.is_healthy
        word = "ok" if is_healthy else "unhealthy"
        headers = {} if is_healthy else {"Retry-After": str(UNHEALTHY_RETRY_S)}
        return JSONResponse(
            {"status": word}, status_code=200 if is_healthy else 503, headers=headers
        )

    @router.get(
        "/version",
        operation_id="getVersion",
        summary="Read the version",
        responses={200: {"model": VersionShape}},
    )
    async def get_version() -> dict[str, str]:
        """The installed version of Gearshift, and what the engine is paced as, if it is."""
        paced = {} if engine.paced_as is None else {"paced": engine.paced_as}
        return {"version": version("gearshift"), **paced}

    @router.get(
        "/metrics",
        operation_id="getMetrics",
        summary="Read the engine's metrics",
        response_class=Exposition,
    )
    async def get_metrics() -> Response:
        """Prometheus exposition, under the names that vLLM's dashboards scrape."""
        text = await run_in_threadpool(metrics.text)
        return Exposition(text)

    return router
