"""How a refusal reads."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


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
    trace_id: str = Field(description="As in the header X-Request-Id and in the service's log")
