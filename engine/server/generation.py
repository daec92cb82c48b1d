"""From an HTTP body to engine requests, and from their outputs to an answer or a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import msgspec
from fastapi import Request as HttpRequest
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from engine.engine import Engine
from engine.errors import EngineError
from engine.request import FinishReason, Request, RequestOutput
from engine.server.answers import AnswerForm, Choice, Usage
from engine.server.errors import ApiError, from_engine_error, invalid, openai_error
from engine.server.metrics import ServerMetrics
from engine.server.schema import GenerationBody
from engine.server.streams import EventStream, LoopBridge, OutputStream, run_while_connected
from engine.tokenizer import Tokenizer

# Longer texts are tokenised on a thread: 4,096 characters take about a millisecond.
LONG_TEXT_CHARS = 4096
STREAM_END = b"data: [DONE]\n\n"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A tokenised prompt, and the text to show before its output (``echo``)."""

    ids: tuple[int, ...]
    shown_text: str = ""


@dataclass(kw_only=True)
class _Collected:
    """What has come of one choice so far."""

    text: str
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def add(self, output: RequestOutput) -> None:
        self.text += output.text
        self.token_ids += output.token_ids
        self.finish_reason = output.finish_reason


class GenerationService:
    """Runs the generation endpoints of one server."""

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, metrics: ServerMetrics, *, model_name: str
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._model_name = model_name
        self._bridge = LoopBridge()

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Token ids of ``text``, computed off the event loop when it is long."""
        if len(text) > LONG_TEXT_CHARS:
            ids = await run_in_threadpool(
                self._tokenizer.encode, text, add_special_tokens=add_special_tokens
            )
        else:
            ids = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return tuple(ids)

    async def answer(
        self,
        http: HttpRequest,
        body: GenerationBody,
        prompts: Sequence[Prompt],
        form: AnswerForm,
        *,
        default_tokens: int | None,
    ) -> Response:
        """Generate for every prompt and choice; one JSON document, or events when streaming.

        Raises:
            ApiError: a prompt too long (400), the queue full (429), the engine failed (503).
        """
        response_id = f"{form.id_prefix}-{uuid.uuid4().hex}"
        form = form.begin(response_id=response_id, model_name=self._model_name)
        requests = self._requests(response_id, body, prompts, default_tokens)
        stream = OutputStream(self._engine, self._bridge, requests, self._metrics.observe)
        shown = [prompt.shown_text for prompt in prompts for _ in range(body.num_choices)]
        prompt_tokens = sum(len(prompt.ids) for prompt in prompts)
        stream.open()
        if body.stream:
            events = self._events(stream, form, body, shown, prompt_tokens)
            return EventStream(events, on_end=stream.close)
        try:
            choices = await run_while_connected(http, self._collect(stream, shown))
        finally:
            stream.close()
        return self._document(choices, form, body, prompt_tokens)

    def _requests(
        self,
        response_id: str,
        body: GenerationBody,
        prompts: Sequence[Prompt],
        default_tokens: int | None,
    ) -> list[Request]:
        arrival_s = time.monotonic()
        requests: list[Request] = []
        for prompt in prompts:
            max_tokens = self._max_tokens(prompt, body, default_tokens)
            for choice in range(body.num_choices):
                requests.append(
                    Request(
                        request_id=f"{response_id}-{len(requests)}",
                        prompt_ids=prompt.ids,
                        sampling=body.sampling(max_tokens=max_tokens, choice=choice),
                        arrival_s=arrival_s,
                    )
                )
        return requests

    def _max_tokens(self, prompt: Prompt, body: GenerationBody, default_tokens: int | None) -> int:
        """The output limit of one prompt: what was asked for, or a default that fits."""
        context, used = self._engine.max_model_len, len(prompt.ids)
        left, asked = context - used, body.asked_tokens
        if left < 1 or (asked is not None and asked > left):
            wanted = f" and max_tokens is {asked}" if asked is not None else ""
            raise invalid(
                f"the context is {context} tokens; the prompt has {used}{wanted}; "
                f"{max(left, 0)} are left for output",
                param="max_tokens" if left >= 1 else form_param(body),
                code="context_length_exceeded",
            )
        if asked is not None:
            return asked
        return left if default_tokens is None else min(default_tokens, left)

    async def _collect(self, stream: OutputStream, shown: Sequence[str]) -> list[_Collected]:
        choices = [_Collected(text=text) for text in shown]
        async for item in stream.outputs():
            _raise_failure(item.output)
            choices[item.index].add(item.output)
        return choices

    def _document(
        self,
        choices: Sequence[_Collected],
        form: AnswerForm,
        body: GenerationBody,
        prompt_tokens: int,
    ) -> Response:
        usage = Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=sum(len(choice.token_ids) for choice in choices),
        )
        answers = [
            Choice(
                index=index,
                text=choice.text,
                finish_reason=choice.finish_reason,
                token_ids=choice.token_ids if body.return_token_ids else None,
            )
            for index, choice in enumerate(choices)
        ]
        content = msgspec.json.encode(form.document(answers, usage))
        return Response(content, media_type="application/json")

    async def _events(
        self,
        stream: OutputStream,
        form: AnswerForm,
        body: GenerationBody,
        shown: Sequence[str],
        prompt_tokens: int,
    ) -> AsyncIterator[bytes]:
        """One event per output; an error becomes the last event, since the status is sent."""
        completion_tokens = 0
        opening = dict(enumerate(shown))
        try:
            async for item in stream.outputs():
                _raise_failure(item.output)
                completion_tokens += len(item.output.token_ids)
                is_first = item.index in opening
                choice = Choice(
                    index=item.index,
                    text=opening.pop(item.index, "") + item.output.text,
                    finish_reason=item.output.finish_reason,
                    token_ids=list(item.output.token_ids) if body.return_token_ids else None,
                )
                yield _event(form.chunk(choice, is_first=is_first))
            if body.wants_usage:
                usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
                yield _event(form.usage_chunk(usage))
        except ApiError as error:
            yield _event(openai_error(error))
        yield STREAM_END


def form_param(body: GenerationBody) -> str:
    """The field that holds the prompt."""
    return "messages" if "messages" in type(body).model_fields else "prompt"


def _event(document: object) -> bytes:
    return b"data: " + msgspec.json.encode(document) + b"\n\n"


def _raise_failure(output: RequestOutput) -> None:
    if output.finish_reason is FinishReason.ERROR:
        raise from_engine_error(EngineError(output.error or "the request failed"))
