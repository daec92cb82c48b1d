"""What a server tells of its requests to whoever traces them. Nothing here traces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from starlette.types import ASGIApp

from engine.spec.request import FinishReason


@dataclass(frozen=True, kw_only=True)
class AskedCall:
    """What one HTTP call asks for, in OpenTelemetry's GenAI words.

    ``prompt_tokens`` are those of its prompts, each counted once however many choices it has.
    """

    operation: str
    model_name: str
    response_id: str
    max_tokens: int
    temperature: float
    top_p: float
    num_choices: int
    prompt_tokens: int
    is_stream: bool


@dataclass(frozen=True, kw_only=True)
class EndedRequest:
    """Stamps of one request that ended, on the engine's clock; None for what it did not reach."""

    arrival_s: float
    scheduled_s: float | None
    first_s: float | None
    last_s: float
    output_tokens: int
    reason: FinishReason


class CallSpan(Protocol):
    """The span of one HTTP call, while it lasts."""

    def end_request(self, ended: EndedRequest) -> None:
        """One of the call's requests has ended."""
        ...


class Traces(Protocol):
    """Spans and GenAI metrics of one server, on their way to a collector."""

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """``app`` with a span for each request, whose parent is the caller's ``traceparent``."""
        ...

    def begin_call(self, asked: AskedCall) -> CallSpan:
        """Note on the request's span what it asks for (called while the request is served)."""
        ...

    def close(self) -> None:
        """Send what is left, within seconds."""
        ...
