"""Bodies of the OpenAI endpoints, checked field by field; nothing is ignored silently.

A field that this server does not have is refused by name, because it may change the answer.
Exceptions are fields that hold nothing (null), fields whose value asks for what happens anyway
(``NEUTRAL``), and fields that no answer depends on (``IGNORED``; the log mentions each once).
"""

from __future__ import annotations

import logging
from functools import cached_property, lru_cache
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)

from engine.server.defaults import SamplingDefaults
from engine.server.errors import invalid
from engine.server.shown import TextWish
from engine.server.takes import (
    FIRST_FAULT,
    NULL,
    NUMBER,
    Flag,
    take_known_fields,
    take_nulls,
    with_few_unknown,
    without_nulls,
)
from engine.spec.request import MAX_LOGPROBS, MAX_PENALTY, SamplingParams

logger = logging.getLogger(__name__)

Number = TypeVar("Number", int, float)

MAX_CHOICES = 128
# Of one call, all its prompts together.
MAX_CALL_CHOICES = 1024
MAX_LOGIT_BIAS = 1024
MAX_STOPS = 64
MAX_STOP_CHARS = 1024
MAX_STOP_IDS = 1024
MAX_TOKEN_ID = 2**31 - 1
MAX_SEED = 2**63 - 1
# Clients of vLLM and of llama.cpp write -1 where they want another answer each time.
UNSEEDED = -1
MAX_PRIORITY = 2**31 - 1
MAX_TIMEOUT_MS = 86_400_000
MAX_SALT_CHARS = 256
DEFAULT_COMPLETION_TOKENS = 16
# Fields of the API that change nothing here whatever they hold.
LABELS = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"})
# Fields other servers have that say how a call is kept, billed, traced, cached or sent on, and
# nothing about what is answered.
IGNORED = frozenset(
    {
        "store",
        "service_tier",
        "prompt_cache_retention",
        "parallel_tool_calls",
        "request_id",
        "rid",
        "trace_id",
        "session_id",
        "cache_prompt",
        "id_slot",
        "keep_alive",
        "kv_transfer_params",
        "provider",
        "route",
        "stream_interval",
        "timeout",
        "num_retries",
        "max_retries",
        "tags",
    }
)
# Fields whose neutral values ask for what this server does anyway; any other value is refused.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_logprobs": (0,),
    "suffix": ("",),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "response_format": ({"type": "text"},),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "spaces_between_special_tokens": (True,),
    "include_reasoning": (True,),
    "return_tokens_as_token_ids": (False,),
    "prediction": (),
    "reasoning_effort": (),
    "truncate_prompt_tokens": (),
    "add_special_tokens": (False,),
    "continue_final_message": (False,),
    "echo": (False,),
}
Penalty = Annotated[float, Field(ge=-2, le=2), NUMBER]
# Strict, because in Python true is the number 1, but not for whoever sends it.
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID, strict=True)]
# Names of JSON are texts.
NamedId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
LogitBias = dict[NamedId, Annotated[float, Field(ge=-100, le=100, strict=True)]]
TokenIds = Annotated[list[TokenId], FIRST_FAULT]
Stop = Annotated[str, Field(max_length=MAX_STOP_CHARS)]
NumLogprobs = Annotated[int, Field(ge=0, le=MAX_LOGPROBS, strict=True)]


def _check_size(bias: object) -> object:
    # Else each of them is looked at, and told of, before they are counted.
    if isinstance(bias, dict) and len(bias) > MAX_LOGIT_BIAS:
        raise ValueError(f"{len(bias)} tokens are more than {MAX_LOGIT_BIAS}")
    return bias


def _describe_strict(schema: dict[str, Any]) -> None:
    take_nulls(schema)
    schema["additionalProperties"] = NULL


def _describe_body(schema: dict[str, Any]) -> None:
    take_nulls(schema)
    take_known_fields(schema, NEUTRAL, LABELS | IGNORED)


class StreamOptions(BaseModel):
    """What a stream carries besides text."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_describe_strict)
    include_usage: Flag = False
    continuous_usage_stats: Flag = False
    include_obfuscation: Flag = False

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, given: Any) -> Any:
        return with_few_unknown(without_nulls(given), cls.model_fields)

    @model_validator(mode="after")
    def _usage_is_asked_for(self) -> Self:
        if self.continuous_usage_stats and not self.include_usage:
            raise ValueError("continuous_usage_stats: only with include_usage=true")
        return self


class GenerationBody(BaseModel):
    """What both endpoints share: how long, how random, how it ends."""

    model_config = ConfigDict(extra="allow", json_schema_extra=_describe_body)

    model: str
    temperature: Annotated[float, Field(ge=0, le=2), NUMBER] | None = None
    top_p: Annotated[float, Field(gt=0, le=1), NUMBER] | None = None
    top_k: Annotated[int, Field(ge=-1), NUMBER] | None = None
    min_p: Annotated[float, Field(ge=0, le=1), NUMBER] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=MAX_PENALTY), NUMBER] | None = None
    logit_bias: (
        Annotated[LogitBias, Field(max_length=MAX_LOGIT_BIAS), BeforeValidator(_check_size)] | None
    ) = None
    seed: Annotated[int, Field(ge=-MAX_SEED - 1, le=MAX_SEED), NUMBER] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES), NUMBER] | None = None
    best_of: Annotated[int, NUMBER] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_IDS)] | None = None
    include_stop_str_in_output: Flag = False
    skip_special_tokens: Flag = True
    max_tokens: Annotated[int, Field(ge=1), NUMBER] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1), NUMBER] | None = None
    min_tokens: Annotated[int, Field(ge=0), NUMBER] = 0
    ignore_eos: Flag = False
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: Flag = False
    prompt_logprobs: NumLogprobs | None = None
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY), NUMBER] = 0
    timeout_ms: Annotated[float, Field(gt=0, le=MAX_TIMEOUT_MS), NUMBER] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=MAX_SALT_CHARS)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, given: Any) -> Any:
        return without_nulls(given)

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @cached_property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """``logit_bias`` as pairs, by token id."""
        return tuple(sorted((self.logit_bias or {}).items()))

    @property
    def text_wish(self) -> TextWish:
        """What is to be shown beside plain text."""
        return TextWish(
            shows_special=not self.skip_special_tokens, shows_stop=self.include_stop_str_in_output
        )

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def wants_usage_always(self) -> bool:
        return self.stream_options is not None and self.stream_options.continuous_usage_stats

    @property
    def asked_tokens(self) -> int | None:
        """The output limit that the caller named, or None; of its two names, the newer one counts
        first."""
        newer = self.max_completion_tokens
        return self.max_tokens if newer is None else newer

    @property
    def num_logprobs(self) -> int | None:
        """How many best tokens to give with each chosen one; None: no log probabilities."""
        return None

    @property
    def num_prompt_logprobs(self) -> int | None:
        """The same for each token of the prompt."""
        return self.prompt_logprobs

    @model_validator(mode="after")
    def _best_of_chooses_nothing(self) -> Self:
        if self.best_of not in (None, self.num_choices):
            raise ValueError(
                f"best_of: {self.best_of} with n={self.num_choices}: outputs are not ranked here; "
                "ask for n of them with logprobs and choose"
            )
        return self

    @model_validator(mode="after")
    def _no_stream_tells_of_prompts(self) -> Self:
        if self.prompt_logprobs is not None and self.stream:
            raise ValueError("prompt_logprobs: only without stream, as a stream has no place")
        return self

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only with stream=true")
        return self

    def refuse_unsupported(self) -> None:
        """Refuse a field this server does not have, unless no answer depends on it.

        Raises:
            ApiError: 400 naming the field.
        """
        for name, value in (self.model_extra or {}).items():
            if name in LABELS or any(_is_same(value, fine) for fine in NEUTRAL.get(name, ())):
                continue
            if name in IGNORED:
                _warn_ignored(name)
                continue
            verb = "not supported with this value" if name in NEUTRAL else "not supported"
            raise invalid(f"{name}: {verb} by this server", param=name, code="unsupported_field")

    def sampling(
        self,
        defaults: SamplingDefaults,
        *,
        max_tokens: int,
        seed: int,
        special_stops: tuple[int, ...] = (),
    ) -> SamplingParams:
        """Sampling of the first choice of a prompt. ``defaults`` and ``seed`` are used where the
        body has none; ``special_stops`` are its stop strings that are special tokens.

        Raises:
            RequestError: values that contradict each other.
        """
        return SamplingParams(
            temperature=_or(self.temperature, defaults.temperature),
            top_p=_or(self.top_p, defaults.top_p),
            top_k=max(_or(self.top_k, defaults.top_k), 0),
            min_p=_or(self.min_p, defaults.min_p),
            repetition_penalty=_or(self.repetition_penalty, defaults.repetition_penalty),
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=self.biases,
            logprobs=self.num_logprobs,
            prompt_logprobs=self.num_prompt_logprobs,
            seed=seed if self.seed is None or self.seed == UNSEEDED else self.seed % 2**64,
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            stop=self.stops,
            stop_token_ids=(*(self.stop_token_ids or ()), *special_stops),
            ignore_eos=self.ignore_eos,
        )


class CompletionBody(GenerationBody):
    """``POST /v1/completions``: text or token ids, one prompt or a list of them."""

    prompt: (
        str | TokenIds | Annotated[list[str], FIRST_FAULT] | Annotated[list[TokenIds], FIRST_FAULT]
    )
    echo: Flag | None = None
    logprobs: NumLogprobs | None = None
    add_special_tokens: Flag = True
    # 0 asks for the prompt alone, as evaluation harnesses do.
    max_tokens: Annotated[int, Field(ge=0), NUMBER] | None = None
    max_completion_tokens: Annotated[int, Field(ge=0), NUMBER] | None = None

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def num_prompt_logprobs(self) -> int | None:
        """With ``echo``, ``logprobs`` asks for those of the prompt too."""
        asked = (self.prompt_logprobs, self.logprobs if self.echo else None)
        return max((number for number in asked if number is not None), default=None)

    @model_validator(mode="after")
    def _there_is_something_to_show(self) -> Self:
        if self.asked_tokens == 0 and not self.echo:
            name = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
            raise ValueError(f"{name}: 0 asks for nothing without echo; ask for at least 1")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts as a list, whatever form they came in."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if prompt and isinstance(prompt[0], int):
            return [[token for token in prompt if isinstance(token, int)]]
        return [item for item in prompt if not isinstance(item, int)]


# Refuses a part of another type by its name, which the schema alone would not do.


def _or(value: Number | None, default: Number) -> Number:
    return default if value is None else value


@lru_cache
def _warn_ignored(name: str) -> None:
    """Say so, once per field and process."""
    logger.warning(
        "requests come with %r, which is ignored here: no answer depends on it. This is not said "
        "again",
        name,
    )


def _is_same(value: Any, neutral: Any) -> bool:
    # False == 0 and True == 1 in Python, but not in JSON.
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)
