"""From an HTTP body to engine requests, and from their outputs to an answer or a stream."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import msgspec
from fastapi import Request as HttpRequest
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from engine.server.answers import AnswerForm, Choice, Usage
from engine.server.choices import ChoiceMaker, CollectedChoice
from engine.server.defaults import SamplingDefaults
from engine.server.errors import (
    ApiError,
    deadline_exceeded,
    from_engine_error,
    invalid,
    no_finite_logit,
    openai_error,
    unavailable,
)
from engine.server.logprobs import LogprobWriter, TokenWords, prompt_logprobs
from engine.server.metrics import ServerMetrics
from engine.server.retry import FinishRate
from engine.server.schema import GenerationBody
from engine.server.served import ServedEngine
from engine.server.shown import ShownText, TextWish
from engine.server.slo import Slo, SloOutcome
from engine.server.spans import AskedCall, CallSpan, Traces
from engine.server.streams import EventStream, LoopBridge, OutputStream, run_while_connected
from engine.server.text_coder import off_loop
from engine.spec.errors import EngineError, OverloadError, QueueFullError, RankError
from engine.spec.request import NO_FINITE_LOGIT, FinishReason, Request, RequestOutput
from engine.text.tokenizer import Tokenizer

# Refusals of requests that nothing is wrong with: the queue is full, or the engine unhealthy.
REFUSALS = (429, 503)
STREAM_END = b"data: [DONE]\n\n"
# What it costs to word one log probability, as characters to tokenise (see ``off_loop``).
LOGPROB_CHARS = 8


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A tokenised prompt, and the text to show before its output (``echo``), if any."""

    ids: tuple[int, ...]
    shown_text: str | None = None


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
        if output.error == NO_FINITE_LOGIT:
            return no_finite_logit(NO_FINITE_LOGIT)
        if output.finish_reason is FinishReason.ERROR:
            return from_engine_error(EngineError(output.error or "the request failed"))
        return None


class GenerationService:
    """Runs the generation endpoints of one server."""

    def __init__(
        self,
        engine: ServedEngine,
        tokenizer: Tokenizer,
        metrics: ServerMetrics,
        *,
        model_name: str,
        defaults: SamplingDefaults,
        traces: Traces | None = None,
    ) -> None:
        self._traces = traces
        self._engine = engine
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._model_name = model_name
        self._defaults = defaults
        self._bridge = LoopBridge()
        self._words = TokenWords(tokenizer)
        self._finish_rate = FinishRate()

    async def answer(
        self,
        http: HttpRequest,
        body: GenerationBody,
        prompts: Sequence[Prompt],
        form: AnswerForm,
        *,
        default_tokens: int | None,
        arrival_s: float,
        slo: Slo | None,
    ) -> Response:
        """Generate for every prompt and choice; one JSON document, or events when streaming.

        Counts how the requests do by ``slo``.

        Raises:
            ApiError: a prompt too long (400), too much load (429), the engine failed (503).
        """
        response_id = f"{form.id_prefix}-{uuid.uuid4().hex}"
        http.state.response_id = response_id
        form = form.begin(response_id=response_id, model_name=self._model_name)
        num_values = 1 + len(body.biases) + len(body.stop_token_ids or ())
        requests = await off_loop(
            len(prompts) * body.num_choices * num_values,
            lambda: self._requests(response_id, body, prompts, default_tokens, arrival_s),
        )
        prompt_tokens = sum(len(prompt.ids) for prompt in prompts)
        span = None
        if self._traces is not None:
            asked = _asked(form, body, requests, self._model_name, prompt_tokens)
            span = self._traces.begin_call(asked)
        call = _Call(
            stream=OutputStream(
                self._engine, self._bridge, requests, partial(self._observe, slo, span)
            ),
            requests=requests,
            makers=self._makers(requests, prompts, body),
            form=form,
            body=body,
            prompt_tokens=prompt_tokens,
        )
        try:
            await self._open(call.stream)
        except ApiError as error:
            if slo is not None and error.status in REFUSALS:
                self._metrics.count_slo(slo, SloOutcome.ERRORED, num_requests=len(requests))
            raise
        if body.stream:
            return EventStream(self._events(call), on_end=call.stream.close)
        try:
            return await run_while_connected(http, self._document(call))
        finally:
            call.stream.close()

    async def _open(self, stream: OutputStream) -> None:
        try:
            await stream.open()
        except RankError as error:  # while one replica serves, others may not
            raise unavailable("the engine is unhealthy", code="engine_unhealthy") from error
        except OverloadError as error:
            raise from_engine_error(error) from error
        except QueueFullError as error:
            stats = await run_in_threadpool(self._engine.stats)
            retry_s = self._finish_rate.queue_s(stats.waiting, time.monotonic())
            raise from_engine_error(error, queue_retry_s=retry_s) from error

    def _observe(
        self, slo: Slo | None, span: CallSpan | None, request: Request, output: RequestOutput
    ) -> None:
        self._metrics.observe(request, output, slo=slo, span=span)
        if output.is_finished:
            self._finish_rate.record(output.token_s)

    def _requests(
        self,
        response_id: str,
        body: GenerationBody,
        prompts: Sequence[Prompt],
        default_tokens: int | None,
        arrival_s: float,
    ) -> list[Request]:
        requests: list[Request] = []
        num_requests = len(prompts) * body.num_choices
        special_stops = self._special_stops(body.stops)
        for prompt in prompts:
            max_tokens = self._max_tokens(prompt, body, default_tokens)
            sampling = body.sampling(
                self._defaults,
                max_tokens=max_tokens,
                seed=secrets.randbits(64),
                special_stops=special_stops,
            )
            for choice in range(body.num_choices):
                requests.append(
                    Request(
                        request_id=f"{response_id}-{len(requests)}",
                        prompt_ids=prompt.ids,
                        sampling=replace(sampling, choice=choice) if choice else sampling,
                        arrival_s=arrival_s,
                        priority=body.priority,
                        deadline_s=(
                            arrival_s + body.timeout_ms / 1000 if body.timeout_ms else None
                        ),
                        num_let_in=0 if requests else num_requests,
                        cache_salt=body.cache_salt or "",
                    )
                )
        return requests

    def _special_stops(self, stops: Sequence[str]) -> tuple[int, ...]:
        """Special tokens among stop strings: plain text, where stop strings are looked for, shows
        none of them."""
        found = (self._tokenizer.find_special(stop) for stop in stops)
        return tuple(i for i in found if i is not None and i < self._engine.model.vocab_size)

    def _makers(
        self, requests: Sequence[Request], prompts: Sequence[Prompt], body: GenerationBody
    ) -> list[ChoiceMaker]:
        openings = [prompt.shown_text for prompt in prompts for _ in range(body.num_choices)]
        return [
            ChoiceMaker(
                index=index,
                opening=opening,
                first_id=request.prompt_ids[0],
                has_output=body.asked_tokens != 0,
                shown=self._shown_text(request, body.text_wish),
                writer=None
                if body.num_logprobs is None
                else LogprobWriter(
                    self._words,
                    num_best=body.num_logprobs,
                    shows_special=body.text_wish.shows_special,
                ),
                has_token_ids=body.return_token_ids,
                tell_prompt=None
                if body.prompt_logprobs is None
                else partial(prompt_logprobs, self._words, body.prompt_logprobs),
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
            self._tokenizer.stream(
                after=request.prompt_ids, skip_special_tokens=not wish.shows_special
            ),
            sampling.stop,
            frozenset(sampling.stop_token_ids) | frozenset(ends),
            wish,
            min_tokens=sampling.min_tokens,
        )

    def _max_tokens(self, prompt: Prompt, body: GenerationBody, default_tokens: int | None) -> int:
        """The output limit of one prompt: what was asked for, or a default that fits; neither is
        more than the server's own limit."""
        context, used = self._engine.max_model_len, len(prompt.ids)
        left, asked, most = context - used, body.asked_tokens, self._defaults.max_new_tokens
        if asked is not None and most is not None:
            asked = min(asked, most)
        if left < 1 or (asked is not None and asked > left):
            wanted = f" and max_tokens is {asked}" if asked is not None else ""
            raise invalid(
                f"the context is {context} tokens; the prompt has {used}{wanted}; "
                f"{max(left, 0)} are left for output",
                param="max_tokens" if left >= 1 else form_param(body),
                code="context_length_exceeded",
            )
        if asked is not None:
            return max(asked, 1)  # of the one that nobody wants, nothing is shown
        return min(limit for limit in (left, default_tokens, most) if limit is not None)

    async def _pieces(self, call: _Call) -> AsyncIterator[Choice]:
        """The pieces of all choices as they come.

        Raises:
            ApiError: a choice failed. All choices have one deadline; when it passes, the error
                comes after the pieces that every choice has by then.
        """
        late: ApiError | None = None
        async for item in call.stream.outputs():
            output, maker = item.output, call.makers[item.index]
            failure = call.find_failure(output)
            if not maker.is_over and (output.token_ids or output.text or failure is None):
                yield await off_loop(_logprob_chars(output), partial(maker.piece, output))
                if maker.is_over and not output.is_finished:
                    request_id = call.requests[item.index].request_id
                    self._engine.abort(request_id, reason=FinishReason.STOP)
            if output.finish_reason is FinishReason.ERROR and failure is not None:
                raise failure
            late = late or failure
        if late is not None:
            raise late

    async def _document(self, call: _Call) -> Response:
        collected = [CollectedChoice() for _ in call.requests]
        async for piece in self._pieces(call):
            collected[piece.index].add(piece)
        choices = [choice.whole() for choice in collected]
        usage = call.usage(sum(choice.num_tokens for choice in choices))
        num_told = sum(choice.num_told for choice in choices)
        content = await off_loop(
            LOGPROB_CHARS * num_told,
            lambda: msgspec.json.encode(call.form.document(choices, usage)),
        )
        return Response(content, media_type="application/json")

    async def _events(self, call: _Call) -> AsyncIterator[bytes]:
        """One event per output; an error becomes the last event, since the status is sent."""
        completion_tokens = 0
        begun: set[int] = set()
        try:
            async for piece in self._pieces(call):
                completion_tokens += piece.num_tokens
                usage = call.usage(completion_tokens)
                chunk = partial(call.form.chunk, piece, usage, is_first=piece.index not in begun)
                yield await off_loop(LOGPROB_CHARS * piece.num_told, partial(_event_of, chunk))
                begun.add(piece.index)
            if call.body.wants_usage:
                yield _event(call.form.usage_chunk(call.usage(completion_tokens)))
        except ApiError as error:
            yield _event(openai_error(error))
        yield STREAM_END


def _asked(
    form: AnswerForm,
    body: GenerationBody,
    requests: Sequence[Request],
    model_name: str,
    prompt_tokens: int,
) -> AskedCall:
    """What a call asks for; sampling is that of all its requests."""
    sampling = requests[0].sampling
    return AskedCall(
        operation=form.operation,
        model_name=model_name,
        response_id=form.response_id,
        max_tokens=sampling.max_tokens if body.asked_tokens is None else body.asked_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        num_choices=len(requests),
        prompt_tokens=prompt_tokens,
        is_stream=bool(body.stream),
    )


def form_param(body: GenerationBody) -> str:
    """The field that holds the prompt."""
    return "messages" if "messages" in type(body).model_fields else "prompt"


def _logprob_chars(output: RequestOutput) -> int:
    """What it costs to word the log probabilities of ``output``."""
    told = (found for found in (output.prompt_logprobs, output.logprobs) if found)
    return LOGPROB_CHARS * sum(len(found) * (1 + len(found[0].top)) for found in told)


def _event_of(make: Callable[[], object]) -> bytes:
    return _event(make())


def _event(document: object) -> bytes:
    return b"data: " + msgspec.json.encode(document) + b"\n\n"
