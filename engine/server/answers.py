"""The documents OpenAI clients read: completions and chat completions, whole or in chunks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import msgspec

from engine.server.logprobs import WordedPosition, chat_logprobs, completion_logprobs
from engine.spec.request import FinishReason


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One alternative output: all of it in a document, its newest piece in a chunk.

    ``num_tokens`` counts towards usage. ``prompt_logprobs``, if asked for, have vLLM's form.
    """

    index: int
    text: str
    finish_reason: FinishReason | None
    num_tokens: int
    token_ids: list[int] | None = None
    logprobs: list[WordedPosition] | None = None
    prompt_logprobs: list[Any] | None = None

    @property
    def num_told(self) -> int:
        """How many log probabilities it tells, about."""
        positions = self.logprobs or ()
        told = len(positions) * (1 + len(positions[-1].top)) if positions else 0
        of_prompt = self.prompt_logprobs or ()
        return told + len(of_prompt) * len(of_prompt[-1] or ()) if of_prompt else told

    def common(self, word: Callable[[Sequence[WordedPosition]], dict[str, Any]]) -> dict[str, Any]:
        """The fields both endpoints have, log probabilities as ``word`` puts them."""
        fields: dict[str, Any] = {
            "index": self.index,
            "logprobs": None if self.logprobs is None else word(self.logprobs),
            "finish_reason": None if self.finish_reason is None else self.finish_reason.value,
        }
        return fields if self.token_ids is None else {**fields, "token_ids": self.token_ids}


class Usage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Tokens of one HTTP call, all its prompts and choices together."""

    prompt_tokens: int
    completion_tokens: int

    def to_json(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


class AnswerForm(Protocol):
    """How one endpoint words its answers."""

    @property
    def id_prefix(self) -> str: ...

    @property
    def operation(self) -> str:
        """What OpenTelemetry calls such calls."""
        ...

    @property
    def response_id(self) -> str: ...

    def begin(self, *, response_id: str, model_name: str) -> AnswerForm:
        """This form for one answer, created now."""
        ...

    def document(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        """The whole answer."""
        ...

    def chunk(self, choice: Choice, usage: Usage, *, is_first: bool) -> dict[str, Any]:
        """One piece of a stream; ``usage`` is what has been used up to it."""
        ...

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        """The last piece of a stream that was asked for usage."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Head:
    """What every document and chunk of one answer starts with."""

    wants_usage: bool = False
    wants_usage_always: bool = False
    response_id: str = ""
    model_name: str = ""
    created: int = 0

    def begin(self, *, response_id: str, model_name: str) -> Self:
        return replace(
            self, response_id=response_id, model_name=model_name, created=int(time.time())
        )

    def _with_head(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.response_id,
            "object": kind,
            "created": self.created,
            "model": self.model_name,
            "choices": choices,
        }

    def _chunk(self, kind: str, choice: dict[str, Any], usage: Usage) -> dict[str, Any]:
        chunk = self._with_head(kind, [choice])
        if self.wants_usage_always:
            return {**chunk, "usage": usage.to_json()}
        # The specification has a null usage in every chunk before the one that holds it.
        return {**chunk, "usage": None} if self.wants_usage else chunk


@dataclass(frozen=True, kw_only=True)
class CompletionForm(_Head):
    """``/v1/completions``."""

    id_prefix: str = "cmpl"
    operation: str = "text_completion"

    def document(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        found = [_completion_choice(choice) for choice in choices]
        return {**self._with_head("text_completion", found), "usage": usage.to_json()}

    def chunk(
        self,
        choice: Choice,
        usage: Usage,
        *,
        is_first: bool,  # noqa: ARG002 - a chat's first chunk differs
    ) -> dict[str, Any]:
        return self._chunk("text_completion", _completion_choice(choice), usage)

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        return {**self._with_head("text_completion", []), "usage": usage.to_json()}


@dataclass(frozen=True, kw_only=True)
class ChatForm(_Head):
    """``/v1/chat/completions``."""

    id_prefix: str = "chatcmpl"
    operation: str = "chat"

    def document(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        found = [
            {
                "message": {"role": "assistant", "content": choice.text},
                **choice.common(chat_logprobs),
            }
            for choice in choices
        ]
        document = {**self._with_head("chat.completion", found), "usage": usage.to_json()}
        told = choices[0].prompt_logprobs  # all choices have one prompt
        return document if told is None else {**document, "prompt_logprobs": told}

    def chunk(self, choice: Choice, usage: Usage, *, is_first: bool) -> dict[str, Any]:
        # The role comes with the first token, so that a first chunk is a first token.
        role = {"role": "assistant"} if is_first else {}
        delta = {"delta": {**role, "content": choice.text}, **choice.common(chat_logprobs)}
        return self._chunk("chat.completion.chunk", delta, usage)

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        return {**self._with_head("chat.completion.chunk", []), "usage": usage.to_json()}


def _completion_choice(choice: Choice) -> dict[str, Any]:
    fields = {"text": choice.text, **choice.common(completion_logprobs)}
    told = choice.prompt_logprobs
    return fields if told is None else {**fields, "prompt_logprobs": told}
