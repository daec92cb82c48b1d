"""Bodies of the OpenAI endpoints, checked field by field; nothing is ignored silently."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from engine.request import SamplingParams
from engine.server.errors import invalid

MAX_CHOICES = 128
MAX_SEED = 2**63 - 1
DEFAULT_COMPLETION_TOKENS = 16
# Fields of the API that change nothing here whatever they hold.
LABELS = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"})
# Fields whose neutral values ask for what this server does anyway; any other value is refused.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "best_of": (None, 1),
    "suffix": (None, ""),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "min_p": (None, 0),
    "use_beam_search": (None, False),
    "response_format": (None, {"type": "text"}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "reasoning_effort": (None,),
    "store": (None, False),
    "service_tier": (None, "auto", "default"),
    "skip_special_tokens": (None, True),
    "add_generation_prompt": (None, True),
}


class StreamOptions(BaseModel):
    """What a stream carries besides text."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False
    include_obfuscation: bool = False


class GenerationBody(BaseModel):
    """What both endpoints share: how long, how random, how it ends."""

    model_config = ConfigDict(extra="allow")

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    seed: Annotated[int, Field(ge=-MAX_SEED - 1, le=MAX_SEED)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] = 0
    ignore_eos: bool = False
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def asked_tokens(self) -> int | None:
        """The output limit the caller named, or None."""
        return self.max_tokens

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only with stream=true")
        return self

    def refuse_unsupported(self) -> None:
        """Refuse a field this server does not have, unless it asks for what happens anyway.

        Raises:
            ApiError: 400 naming the field.
        """
        for name, value in (self.model_extra or {}).items():
            if name in LABELS or any(_is_same(value, fine) for fine in NEUTRAL.get(name, ())):
                continue
            verb = "not supported with this value" if name in NEUTRAL else "not supported"
            raise invalid(f"{name}: {verb} by this server", param=name, code="unsupported_field")

    def sampling(self, *, max_tokens: int, choice: int) -> SamplingParams:
        """Sampling of one choice. An unseeded random one gets a seed of its own.

        Raises:
            RequestError: values that contradict each other.
        """
        return SamplingParams(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(self.top_k or 0, 0),
            seed=_choice_seed(self.seed, choice),
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=self.ignore_eos,
        )


class CompletionBody(GenerationBody):
    """``POST /v1/completions``: text or token ids, one prompt or a list of them."""

    prompt: str | list[int] | list[str] | list[list[int]]
    echo: bool | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts as a list, whatever form they came in."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if prompt and isinstance(prompt[0], int):
            return [[token for token in prompt if isinstance(token, int)]]
        return [item for item in prompt if not isinstance(item, int)]


class ChatMessage(BaseModel):
    """One turn. Other keys (such as ``name``) go to the chat template as they are."""

    model_config = ConfigDict(extra="allow")
    role: str
    content: str | list[dict[str, Any]] | None = None

    def for_template(self) -> dict[str, Any]:
        """The message with its content as one text.

        Raises:
            ApiError: 400 for a part that is not text.
        """
        return {**self.model_dump(), "content": _text_of(self.content)}


class ChatBody(GenerationBody):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    @property
    def asked_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


def _is_same(value: Any, neutral: Any) -> bool:
    # False == 0 and True == 1 in Python, but not in JSON.
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)


def _choice_seed(seed: int | None, choice: int) -> int:
    """Choice 0 keeps the caller's seed; further ones are spread over the 64-bit space."""
    if seed is None:
        return secrets.randbits(64)
    return (seed + choice * 0x9E3779B97F4A7C15) % 2**64


def _text_of(content: str | list[dict[str, Any]] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise invalid(
                f"messages: content part of type {part.get('type')!r} is not supported; use text",
                param="messages",
                code="unsupported_field",
            )
    return "".join(part["text"] for part in content)
