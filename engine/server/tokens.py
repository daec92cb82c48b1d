"""Texts to token ids and back, under the names vLLM gave these endpoints."""

from __future__ import annotations

from typing import Annotated, Any, Self

from fastapi import APIRouter, Body
from pydantic import BaseModel, ConfigDict, model_validator

from engine.server.chat_schema import Messages, TemplateBody
from engine.server.errors import check_model
from engine.server.examples import HELLO, examples
from engine.server.schema import TokenIds
from engine.server.served import ServedEngine
from engine.server.shapes import DetokenizedShape, TokenizedShape
from engine.server.takes import NULL, Flag, take_nulls, with_few_unknown, without_nulls
from engine.server.text_coder import TextCoder

TOKENIZE = examples({"text": {"prompt": "The quick"}, "chat": {"messages": [HELLO]}})
DETOKENIZE = examples({"ids": {"tokens": [297, 224, 84]}})


def _describe(schema: dict[str, Any]) -> None:
    take_nulls(schema)
    schema["additionalProperties"] = NULL


class TokenizeBody(TemplateBody):
    """``POST /tokenize``: a text, or a conversation as the chat template words it."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_describe)
    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: Flag | None = None
    return_token_strs: Flag = False

    @property
    def adds_special(self) -> bool:
        """Whether a begin token is added; chat templates write their own."""
        if self.add_special_tokens is None:
            return self.messages is None
        return self.add_special_tokens

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, given: Any) -> Any:
        return with_few_unknown(without_nulls(given), cls.model_fields)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: give it or messages, and not both")
        return self


class DetokenizeBody(BaseModel):
    """``POST /detokenize``."""

    model_config = ConfigDict(extra="forbid")
    model: str | None = None
    tokens: TokenIds

    @model_validator(mode="before")
    @classmethod
    def _few_are_unknown(cls, given: Any) -> Any:
        return with_few_unknown(given, cls.model_fields)


def token_router(engine: ServedEngine, coder: TextCoder, model_name: str) -> APIRouter:
    """``POST /tokenize`` and ``POST /detokenize``."""
    router = APIRouter(tags=["tokens"])

    @router.post(
        "/tokenize",
        operation_id="tokenize",
        summary="Turn text into token ids",
        responses={200: {"model": TokenizedShape}},
    )
    async def tokenize(
        body: Annotated[TokenizeBody, Body(openapi_examples=TOKENIZE)],
    ) -> dict[str, Any]:
        """Token ids of a text, or of a conversation as the chat template words it."""
        check_model(body.model or model_name, model_name)
        ids = await _encode(coder, body)
        texts: list[str] | None = None
        if body.return_token_strs:
            texts = await coder.decode([[i] for i in ids], skip_special_tokens=False)
        return {
            "count": len(ids),
            "max_model_len": engine.max_model_len,
            "tokens": list(ids),
            "token_strs": texts,
        }

    @router.post(
        "/detokenize",
        operation_id="detokenize",
        summary="Turn token ids into text",
        responses={200: {"model": DetokenizedShape}},
    )
    async def detokenize(
        body: Annotated[DetokenizeBody, Body(openapi_examples=DETOKENIZE)],
    ) -> dict[str, str]:
        """The text that token ids stand for."""
        check_model(body.model or model_name, model_name)
        (text,) = await coder.decode([body.tokens], skip_special_tokens=False)
        return {"prompt": text}

    return router


async def _encode(coder: TextCoder, body: TokenizeBody) -> tuple[int, ...]:
    if body.messages is not None:
        return await coder.encode_chat(
            body.messages, body.template_values, add_special_tokens=body.adds_special
        )
    (ids,) = await coder.encode([body.prompt or ""], add_special_tokens=body.adds_special)
    return ids
