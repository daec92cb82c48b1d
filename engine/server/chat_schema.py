"""What clients send to get an answer in a conversation, checked as it is read."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from engine.server.errors import ApiError, invalid
from engine.server.schema import GenerationBody, NumLogprobs
from engine.server.takes import FIRST_FAULT, Flag, without_nulls

# What ``apply_chat_template`` takes beside the values of a template.
NOT_TEMPLATE_VALUES = frozenset({"messages", "conversation", "chat_template", "tokenize"})
TextPart = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "type": "object",
            "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
            "required": ["type", "text"],
        }
    ),
]


class ChatMessage(BaseModel):
    """One turn. Other keys (such as ``name``) go to the chat template as they are."""

    model_config = ConfigDict(extra="allow")
    role: str
    content: str | Annotated[list[TextPart], FIRST_FAULT] | None = None

    @property
    def num_chars(self) -> int:
        """About how much a template has to read."""
        if isinstance(self.content, str) and not self.model_extra:
            return len(self.content)
        return len(str(self.content)) + len(str(self.model_extra))

    def for_template(self) -> dict[str, Any]:
        """The message with its content as one text, and the arguments of tool calls, which clients
        send as JSON in a text, as the values that templates write.

        Raises:
            ApiError: 400 for a part that is not text, or arguments that are no JSON object.
        """
        extra = without_nulls(self.model_extra or {})
        if isinstance(calls := extra.pop("tool_calls", None), list):
            calls = [_with_values(call) for call in calls]
        # Templates ask whether there is a list of calls, and write an empty one instead of a text.
        if calls:
            extra["tool_calls"] = calls
        return {"role": self.role, "content": _text_of(self.content), **extra}


Messages = Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
Values = Annotated[list[dict[str, Any]], FIRST_FAULT]


class ToolName(BaseModel):
    """Which function."""

    name: str


class NamedTool(BaseModel):
    """A ``tool_choice`` that names one."""

    type: Literal["function"] = "function"
    function: ToolName


class TemplateBody(BaseModel):
    """What the chat template is told beside the conversation.

    ``tools`` and ``tool_choice`` are for the template only: an answer need not obey them, and is
    not searched for calls.
    """

    tools: Values | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    documents: Values | None = None
    add_generation_prompt: Flag = True
    chat_template_kwargs: dict[str, Any] = {}

    @field_validator("chat_template_kwargs")
    @classmethod
    def _only_values(cls, given: dict[str, Any]) -> dict[str, Any]:
        for name in sorted(given.keys() & NOT_TEMPLATE_VALUES):
            raise ValueError(f"{name!r} is nothing that a template is told")
        return given

    @model_validator(mode="after")
    def _choice_is_of_tools(self) -> Self:
        choice = self.tool_choice
        if choice == "required" and not self.tools:
            raise ValueError("tool_choice: 'required' without tools")
        if isinstance(choice, NamedTool):
            functions = [tool.get("function") for tool in self.tools or ()]
            names = [found.get("name") for found in functions if isinstance(found, dict)]
            if choice.function.name not in names:
                raise ValueError(f"tool_choice: no tool is named {choice.function.name!r}")
        return self

    @property
    def template_values(self) -> dict[str, Any]:
        """The values under the names that templates know; what the client left out is left out."""
        given = {
            "tools": self.tools or None,
            "documents": self.documents or None,
            "tool_choice": self.tool_choice.model_dump()
            if isinstance(self.tool_choice, NamedTool)
            else self.tool_choice,
        }
        told = {name: value for name, value in given.items() if value is not None}
        return {
            "add_generation_prompt": self.add_generation_prompt,
            **self.chat_template_kwargs,
            **told,
        }


class ChatBody(TemplateBody, GenerationBody):
    """``POST /v1/chat/completions``."""

    messages: Messages
    logprobs: Flag | None = None
    top_logprobs: NumLogprobs | None = None

    @property
    def num_logprobs(self) -> int | None:
        return self.top_logprobs or 0 if self.logprobs else None

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: only with logprobs=true")
        return self


def _with_values(call: Any) -> Any:
    """A tool call with its arguments as an object, an empty one where there are none."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    told = function.get("arguments")
    if not isinstance(told, str | None):
        return call
    try:
        arguments = json.loads(told or "{}")
    except (ValueError, RecursionError) as error:
        raise _bad_arguments(str(error)) from error
    if not isinstance(arguments, dict):
        raise _bad_arguments(f"it is {type(arguments).__name__}")
    return {**call, "function": {**function, "arguments": arguments}}


def _bad_arguments(why: str) -> ApiError:
    return invalid(
        f"messages: arguments of a tool call are no JSON object ({why})", param="messages"
    )


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
