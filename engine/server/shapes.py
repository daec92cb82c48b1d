"""The shapes of what the engine's server answers, for its description; a test holds them true.

Answers are written by hand (``answers``), as a model per token would cost more than the token.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.server import example_answers as examples
from engine.spec.request import FinishReason

Finish = FinishReason | None


def shown(example: dict[str, Any]) -> ConfigDict:
    """The configuration of a shape that the description shows as ``example``."""
    return ConfigDict(json_schema_extra={"examples": [example]})


class Shape(BaseModel):
    """An object with these fields and no others; fields with a default may be left out."""

    model_config = ConfigDict(extra="forbid")


class UsageShape(Shape):
    """Tokens of one call, all its prompts and choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class PromptLogprobShape(Shape):
    """One token at a position of the prompt."""

    logprob: float
    rank: int
    decoded_token: str


# The tokens of each position by id; null for the first, which nothing stands before.
PromptLogprobs = list[dict[str, PromptLogprobShape] | None]


class CompletionLogprobsShape(Shape):
    """Parallel lists, one entry per token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoiceShape(Shape):
    """One output of a prompt."""

    text: str
    index: int
    logprobs: CompletionLogprobsShape | None
    finish_reason: Finish
    token_ids: list[int] = Field(default=[], description="With `return_token_ids`")
    prompt_logprobs: PromptLogprobs = Field(default=[], description="With `prompt_logprobs`")


class CompletionShape(Shape):
    """The answer to a completion; of a stream, one chunk, with usage only if asked for."""

    model_config = shown(examples.COMPLETION)

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoiceShape]
    usage: UsageShape | None = None


class ChatTokenShape(Shape):
    """One token."""

    token: str
    logprob: float | None
    bytes: list[int]


class ChatPositionShape(ChatTokenShape):
    """One position: its token, and the best ones."""

    top_logprobs: list[ChatTokenShape]


class ChatLogprobsShape(Shape):
    """One entry per token."""

    content: list[ChatPositionShape]
    refusal: None


class AnswerMessageShape(Shape):
    """What the model says."""

    role: Literal["assistant"]
    content: str


class ChatChoiceShape(Shape):
    """One answer to the conversation."""

    index: int
    message: AnswerMessageShape
    logprobs: ChatLogprobsShape | None
    finish_reason: Finish
    token_ids: list[int] = Field(default=[], description="With `return_token_ids`")


class ChatShape(Shape):
    """The answer to a conversation."""

    model_config = shown(examples.CHAT)

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoiceShape]
    usage: UsageShape
    prompt_logprobs: PromptLogprobs = Field(default=[], description="With `prompt_logprobs`")


class DeltaShape(Shape):
    """What a chunk adds; the first of a choice names the role."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChunkChoiceShape(Shape):
    """The newest piece of one answer."""

    index: int
    delta: DeltaShape
    logprobs: ChatLogprobsShape | None
    finish_reason: Finish
    token_ids: list[int] = Field(default=[], description="With `return_token_ids`")


class ChatChunkShape(Shape):
    """One event of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoiceShape]
    usage: UsageShape | None = None


class ModelShape(Shape):
    """The model that is served."""

    model_config = shown(examples.MODEL)

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    max_model_len: int


class ModelListShape(Shape):
    """The one model that is served, as a list."""

    model_config = shown(examples.MODELS)

    object: Literal["list"]
    data: list[ModelShape]


class TokenizedShape(Shape):
    """Token ids of a text or a conversation."""

    model_config = shown(examples.TOKENIZED)

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizedShape(Shape):
    """The text of token ids."""

    model_config = shown(examples.DETOKENIZED)

    prompt: str


class HealthShape(Shape):
    """Whether every replica serves."""

    model_config = shown(examples.HEALTH)

    status: Literal["ok", "unhealthy"]


class VersionShape(Shape):
    """What is installed here."""

    model_config = shown(examples.VERSION)

    version: str
    paced: str = Field(default="", description="What the engine is paced as, if no model is run")


class ErrorShape(Shape):
    """What is wrong, for a person and (``code``) for a program; ``param`` is the field at fault."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(Shape):
    """A refusal as OpenAI words it; also the last event but one of a stream that failed."""

    error: ErrorShape


class FieldProblem(BaseModel):
    """One wrong field."""

    pointer: str = Field(description="JSON pointer into the body, or /query/NAME and the like")
    detail: str


class Problem(BaseModel):
    """An RFC 9457 problem document. Some codes have further members, named by their detail."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str = Field(description="The status in words")
    status: int
    detail: str = Field(description="What is wrong and the way out, for a person")
    instance: str = Field(description="Path of the request")
    code: str = Field(description="What is wrong, for a program")
    errors: list[FieldProblem]
    trace_id: str = Field(description="As in the header X-Request-Id and in the log, if there")
