"""From an HTTP body to engine requests, and from their outputs to an answer or a stream."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import msgspec
from fastapi import Request as HttpRequest
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from engine.errors import EngineError, QueueFullError
from engine.request import FinishReason, Request, RequestOutput
from engine.server.answers import AnswerForm, Choice, Usage
from engine.server.choices import ChoiceMaker, CollectedChoice
from engine.server.errors import (
    ApiError,
    deadline_exceeded,
    from_engine_error,
    invalid,
    openai_error,
)
from engine.server.logprobs import LogprobWriter, TokenWords
from engine.server.metrics import ServerMetrics
from engine.server.retry import FinishRate
from engine.server.schema import GenerationBody
from engine.server.served import ServedEngine
from engine.server.shown import ShownText, TextWish
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


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one output added to one choice."""

    choice: Choice
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class _Call:
    """One HTTP call under way."""

    stream: OutputStream
    requests: Sequence[Request]
    makers: Sequence[ChoiceMaker]
    form: AnswerForm
    body: GenerationBody
    prompt_tokens: int

    def usage(self, completion_tokens: int) -> Usage:
        return Usage(prompt_tokens=self.prompt_tokens, completion_tokens=completion_tokens)

    def find_failure(self, output: RequestOutput) -> ApiError | None:
        """The error that ``output`` ends its choice with."""
        if output.finish_reason is FinishReason.DEADLINE:
            return deadline_exceeded(f"not finished within {self.body.timeout_ms:g} ms")
        if output.finish_reason is FinishReason.ERROR:
            return from_engine_error(EngineError(output.error or "the request failed"))
        return None


class GenerationService:
    """Runs the generation endpoints of one server."""

    def __init__(
        self, engine: ServedEngine, tokenizer: Tokenizer, metrics: ServerMetrics, *, model_name: str
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._model_name = model_name
        self._bridge = LoopBridge()
        self._words = TokenWords(tokenizer)
        self._finish_rate = FinishRate()

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
        call = _Call(
            stream=OutputStream(self._engine, self._bridge, requests, self._observe),
            requests=requests,
            makers=self._makers(requests, prompts, body),
            form=form,
            body=body,
            prompt_tokens=sum(len(prompt.ids) for prompt in prompts),
        )
        await self._open(call.stream)
        if body.stream:
            return EventStream(self._events(call), on_end=call.stream.close)
        try:
            return await run_while_connected(http, self._document(call))
        finally:
            call.stream.close()

    async def _open(self, stream: OutputStream) -> None:
        try:
            await stream.open()
        except QueueFullError as error:
            stats = await run_in_threadpool(self._engine.stats)
            retry_s = self._finish_rate.queue_s(stats.waiting, time.monotonic())
            raise from_engine_error(error, queue_retry_s=retry_s) from error

    def _observe(self, request: Request, output: RequestOutput) -> None:
        self._metrics.observe(request, output)
        if output.is_finished:
            self._finish_rate.record(output.token_s)

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
            seed = secrets.randbits(64)
            for choice in range(body.num_choices):
                requests.append(
                    Request(
                        request_id=f"{response_id}-{len(requests)}",
                        prompt_ids=prompt.ids,
                        sampling=body.sampling(max_tokens=max_tokens, choice=choice, seed=seed),
                        arrival_s=arrival_s,
                        priority=body.priority,
                        deadline_s=(
                            arrival_s + body.timeout_ms / 1000 if body.timeout_ms else None
                        ),
                    )
                )
        return requests

    def _makers(
        self, requests: Sequence[Request], prompts: Sequence[Prompt], body: GenerationBody
    ) -> list[ChoiceMaker]:
        openings = [prompt.shown_text for prompt in prompts for _ in range(body.num_choices)]
        return [
            ChoiceMaker(
                index=index,
                opening=opening,
                shown=self._shown_text(request, body.text_wish),
                writer=LogprobWriter(self._words, shows_special=body.text_wish.shows_special)
                if request.sampling.logprobs is not None
                else None,
                has_token_ids=body.return_token_ids,
            )
            for index, (request, opening) in enumerate(zip(requests, openings, strict=True))
        ]

    def _shown_text(self, request: Request, wish: TextWish) -> ShownText | None:
        """None where the engine's own text does."""
        if not wish:
            return None
        sampling = request.sampling
        ends = () if sampling.ignore_eos else self._engine.model.eos_token_ids
        return ShownText(
            self._tokenizer.stream(skip_special_tokens=not wish.shows_special),
            sampling.stop,
            frozenset(sampling.stop_token_ids) | frozenset(ends),
            wish,
        )

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

    async def _pieces(self, call: _Call) -> AsyncIterator[Piece]:
        """The pieces of all choices as they come.

        Raises:
            ApiError: a choice failed. At a deadline, which all have in common, every choice has
                said what it has by then.
        """
        late: ApiError | None = None
        async for item in call.stream.outputs():
            output, maker = item.output, call.makers[item.index]
            failure = call.find_failure(output)
            if not maker.is_over and (output.token_ids or output.text or failure is None):
                choice = maker.piece(output)
                yield Piece(choice=choice, num_tokens=len(output.token_ids))
                if maker.is_over and not output.is_finished:
                    self._engine.abort(call.requests[item.index].request_id)
            if output.finish_reason is FinishReason.ERROR and failure is not None:
                raise failure
            late = late or failure
        if late is not None:
            raise late

    async def _document(self, call: _Call) -> Response:
        collected = [CollectedChoice() for _ in call.requests]
        completion_tokens = 0
        async for piece in self._pieces(call):
            collected[piece.choice.index].add(piece.choice)
            completion_tokens += piece.num_tokens
        choices = [choice.whole() for choice in collected]
        content = msgspec.json.encode(call.form.document(choices, call.usage(completion_tokens)))
        return Response(content, media_type="application/json")

    async def _events(self, call: _Call) -> AsyncIterator[bytes]:
        """One event per output; an error becomes the last event, since the status is sent."""
        completion_tokens = 0
        begun: set[int] = set()
        try:
            async for piece in self._pieces(call):
                completion_tokens += piece.num_tokens
                index = piece.choice.index
                usage = call.usage(completion_tokens)
                yield _event(call.form.chunk(piece.choice, usage, is_first=index not in begun))
                begun.add(index)
            if call.body.wants_usage:
                yield _event(call.form.usage_chunk(call.usage(completion_tokens)))
        except ApiError as error:
            yield _event(openai_error(error))
        yield STREAM_END


def form_param(body: GenerationBody) -> str:
    """The field that holds the prompt."""
    return "messages" if "messages" in type(body).model_fields else "prompt"


def _event(document: object) -> bytes:
    return b"data: " + msgspec.json.encode(document) + b"\n\n"
