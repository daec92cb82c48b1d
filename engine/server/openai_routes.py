"""OpenAI's endpoints: the served model, completions of prompts, answers in conversations."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Request
from fastapi.responses import Response

from engine.server.answers import ChatForm, CompletionForm
from engine.server.chat_schema import ChatBody
from engine.server.description import events
from engine.server.errors import check_model, invalid
from engine.server.examples import CHATS, COMPLETIONS
from engine.server.generation import GenerationService, Prompt
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
    ModelListShape,
    ModelShape,
)
from engine.server.slo import Slo, read_slo
from engine.server.text_coder import TextCoder
from engine.spec.settings import Order

PREFIX, TAGS = "/v1", ["openai"]
Objective = Annotated[Slo | None, Depends(read_slo)]


def model_router(engine: ServedEngine, model_name: str) -> APIRouter:
    """``GET /v1/models`` and ``GET /v1/models/{model}``."""
    router = APIRouter(prefix=PREFIX, tags=[*TAGS])
    created = int(time.time())

    def card() -> dict[str, Any]:
        return {
            "id": model_name,
            "object": "model",
            "created": created,
            "owned_by": _owner(engine.paced_as),
            "root": str(engine.model_dir),
            "max_model_len": engine.max_model_len,
        }

    @router.get(
        "/models",
        operation_id="listModels",
        summary="List the served model",
        responses={200: {"model": ModelListShape}},
    )
    async def list_models() -> dict[str, Any]:
        """The one model served here, with its context in tokens, as OpenAI lists models."""
        return {"object": "list", "data": [card()]}

    @router.get(
        "/models/{model:path}",
        operation_id="getModel",
        summary="Read the served model",
        responses={200: {"model": ModelShape}},
    )
    async def get_model(model: str) -> dict[str, Any]:
        """The served model by its name; 404 for another name."""
        check_model(model, model_name)
        return card()

    return router


def completion_router(
    engine: ServedEngine, coder: TextCoder, service: GenerationService, model_name: str
) -> APIRouter:
    """``POST /v1/completions``."""
    router = APIRouter(prefix=PREFIX, tags=[*TAGS])

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

    return router


def chat_router(
    engine: ServedEngine, coder: TextCoder, service: GenerationService, model_name: str
) -> APIRouter:
    """``POST /v1/chat/completions``."""
    router = APIRouter(prefix=PREFIX, tags=[*TAGS])

    @router.post(
        "/chat/completions",
        operation_id="createChatCompletion",
        summary="Answer a conversation",
        responses={200: {"model": ChatShape, "content": events(ChatChunkShape)}},
    )
    async def chat(
        http: Request, body: Annotated[ChatBody, Body(openapi_examples=CHATS)], slo: Objective
    ) -> Response:
        """Turn a conversation into a prompt by the chat template and answer it, at once or
        streamed."""
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
