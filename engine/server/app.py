"""The engine's HTTP server: OpenAI endpoints, health, metrics and the knob plane."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from engine.server.answers import ChatForm, CompletionForm
from engine.server.chat_schema import ChatBody
from engine.server.defaults import SamplingDefaults
from engine.server.description import DescribedApp, describe, events
from engine.server.errors import (
    UNHEALTHY_RETRY_S,
    answer_crash,
    check_model,
    install_error_handlers,
    invalid,
    respond,
)
from engine.server.examples import CHATS, COMPLETIONS
from engine.server.gate import Gate
from engine.server.generation import GenerationService, Prompt
from engine.server.keys import ServerKeys
from engine.server.knobs import KnobPlane, knob_router
from engine.server.metrics import ServerMetrics
from engine.server.pace import PacedAnswers
from engine.server.pages import add_docs
from engine.server.request_log import RequestLog
from engine.server.schema import (
    DEFAULT_COMPLETION_TOKENS,
    MAX_CALL_CHOICES,
    CompletionBody,
    GenerationBody,
)
from engine.server.served import ServedEngine
from engine.server.shapes import (
    ChatChunkShape,
    ChatShape,
    CompletionShape,
    HealthShape,
    ModelListShape,
    ModelShape,
    VersionShape,
)
from engine.server.slo import Slo, read_slo
from engine.server.spans import Traces
from engine.server.text_coder import TextCoder
from engine.server.tokens import token_router
from engine.spec.limits import RequestLimits
from engine.spec.settings import Order
from engine.text.tokenizer import Tokenizer

Objective = Annotated[Slo | None, Depends(read_slo)]
OPEN_PATHS = ("/health", "/ping", "/version", "/metrics")
HEALTH: dict[int | str, dict[str, Any]] = {
    200: {"model": HealthShape},
    503: {"model": HealthShape, "description": "Requests are not served now"},
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
    get a span of each; they are the caller's to close.
    Where no model is run, ``/version``, the model's owner and a header of every answer say so.
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
    app.include_router(_openai_router(engine, coder, service, model_name))
    app.include_router(token_router(engine, coder, model_name))
    app.include_router(knob_router(KnobPlane(engine, engine_name=engine_name)))
    app.include_router(_health_router(engine, metrics))
    return app


def _openai_router(
    engine: ServedEngine, coder: TextCoder, service: GenerationService, model_name: str
) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["openai"])
    card = {
        "id": model_name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": _owner(engine.paced_as),
        "root": str(engine.model_dir),
    }

    @router.get(
        "/models",
        operation_id="listModels",
        summary="List the served model",
        responses={200: {"model": ModelListShape}},
    )
    async def list_models() -> dict[str, Any]:
        """The one model served here, with its context in tokens, as OpenAI lists models."""
        return {"object": "list", "data": [{**card, "max_model_len": engine.max_model_len}]}

    @router.get(
        "/models/{model:path}",
        operation_id="getModel",
        summary="Read the served model",
        responses={200: {"model": ModelShape}},
    )
    async def get_model(model: str) -> dict[str, Any]:
        """The served model by its name; 404 for another name."""
        check_model(model, model_name)
        return {**card, "max_model_len": engine.max_model_len}

    @router.post(
        "/completions",
        operation_id="createCompletion",
        summary="Complete prompts",
        responses={200: {"model": CompletionShape, "content": events(CompletionShape)}},
    )
    async def completions(
        http: Request,
        body: Annotated[CompletionBody, Body(openapi_examples=COMPLETIONS)],
        slo: Objective,
    ) -> Response:
        """Complete one or several prompts, at once or as server-sent events with ``stream``."""
        arrival_s = time.monotonic()
        _check_body(engine, body, model_name)
        prompts = await _prompts(engine, coder, body)
        form = CompletionForm(
            wants_usage=body.wants_usage, wants_usage_always=body.wants_usage_always
        )
        return await service.answer(
            http,
            body,
            prompts,
            form,
            default_tokens=DEFAULT_COMPLETION_TOKENS,
            arrival_s=arrival_s,
            slo=slo,
        )

    @router.post(
        "/chat/completions",
        operation_id="createChatCompletion",
        summary="Answer a conversation",
        responses={200: {"model": ChatShape, "content": events(ChatChunkShape)}},
    )
    async def chat(
        http: Request, body: Annotated[ChatBody, Body(openapi_examples=CHATS)], slo: Objective
    ) -> Response:
        """Word a conversation by the chat template and answer it, at once or streamed."""
        arrival_s = time.monotonic()
        _check_body(engine, body, model_name)
        ids = await coder.encode_chat(body.messages, body.template_values)
        _check_ids(ids, engine, "messages")
        form = ChatForm(wants_usage=body.wants_usage, wants_usage_always=body.wants_usage_always)
        return await service.answer(
            http, body, [Prompt(ids=ids)], form, default_tokens=None, arrival_s=arrival_s, slo=slo
        )

    return router


def _owner(paced_as: str | None) -> str:
    return "gearshift" if paced_as is None else f"gearshift, paced as {paced_as}"


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
        """200 while requests are served; 503 while not, with when to ask again."""
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


def _check_body(engine: ServedEngine, body: GenerationBody, model_name: str) -> None:
    """Refuse another model, a field that would be ignored, and work no rank could do."""
    check_model(body.model, model_name)
    body.refuse_unsupported()
    if body.priority and engine.policy.settings.order is not Order.PRIORITY:
        raise invalid(
            "priority: requests are served in another order here; the policy's scheduler.order "
            f"is {engine.policy.settings.order.value!r}, not 'priority'",
            param="priority",
            code="unsupported_field",
        )
    _check_ids([token_id for token_id, _ in body.biases], engine, "logit_bias")
    _check_ids(body.stop_token_ids or (), engine, "stop_token_ids")


def _check_ids(ids: Sequence[int], engine: ServedEngine, param: str) -> None:
    largest, vocab_size = max(ids, default=0), engine.model.vocab_size
    if largest >= vocab_size:
        raise invalid(
            f"{param}: token id {largest} is outside the vocabulary of {vocab_size}", param=param
        )


async def _prompts(engine: ServedEngine, coder: TextCoder, body: CompletionBody) -> list[Prompt]:
    """Tokenise the prompts; with ``echo`` their texts go before the outputs."""
    given = body.prompts
    if not given:
        raise invalid("prompt: an empty list asks for nothing", param="prompt")
    if len(given) * body.num_choices > MAX_CALL_CHOICES:
        raise invalid(
            f"prompt: {len(given)} prompts with n={body.num_choices} are more than "
            f"{MAX_CALL_CHOICES} outputs in one call",
            param="prompt",
        )
    texts = [prompt for prompt in given if isinstance(prompt, str)]
    ids = await coder.encode(texts, add_special_tokens=body.add_special_tokens)
    ids += [tuple(prompt) for prompt in given if not isinstance(prompt, str)]
    for found in ids:
        if not found:
            raise invalid("prompt: it has no tokens", param="prompt")
        _check_ids(found, engine, "prompt")
    if not body.echo:
        return [Prompt(ids=found) for found in ids]
    shown = texts or await coder.decode(ids)
    return [Prompt(ids=i, shown_text=text) for i, text in zip(ids, shown, strict=True)]
