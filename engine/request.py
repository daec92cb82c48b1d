"""Requests as callers hand them in, and outputs as the engine hands them back."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from engine.errors import RequestError

MAX_SEED = 2**64 - 1
MAX_TOP_K = 2**31 - 1


class FinishReason(StrEnum):
    """Why a request ended; the first two are OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen. ``temperature`` 0 = greedy; ``top_k`` 0 = all tokens.

    The same ``seed`` gives the same output on any plan, in any mode, after any preemption:
    randomness is counted by (seed, choice, output position), never by batch row.

    Raises:
        RequestError: a value outside its range, named.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    max_tokens: int = 16
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        checks = (
            (self.temperature >= 0, f"temperature={self.temperature}: must be at least 0"),
            (0 <= self.top_k <= MAX_TOP_K, f"top_k={self.top_k}: must be in 0..2**31-1 (0 = all)"),
            (0 < self.top_p <= 1, f"top_p={self.top_p}: must be above 0 and at most 1"),
            (0 <= self.seed <= MAX_SEED, f"seed={self.seed}: must be in 0..2**64-1"),
            (self.max_tokens >= 1, f"max_tokens={self.max_tokens}: must be at least 1"),
            (
                0 <= self.min_tokens <= self.max_tokens,
                f"min_tokens={self.min_tokens}: must be in 0..max_tokens={self.max_tokens}",
            ),
            (all(self.stop), "stop: an empty string would stop every request at once"),
        )
        for is_fine, message in checks:
            if not is_fine:
                raise RequestError(message)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt to continue. ``arrival_s`` is on the engine's clock."""

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    arrival_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise RequestError(f"request {self.request_id}: the prompt has no tokens")

    @property
    def max_len(self) -> int:
        """Most tokens the sequence can reach: prompt plus ``max_tokens``."""
        return len(self.prompt_ids) + self.sampling.max_tokens


@dataclass(frozen=True, kw_only=True)
class RequestOutput:
    """What one step added to one request; ``finish_reason`` is set on the last one.

    ``text`` is the newly printable text ("" while a character is incomplete, or when the engine
    has no tokenizer). ``token_s`` is the engine-clock time at which the tokens were produced,
    ``scheduled_s`` the one at which the request first entered a step (None before that).
    """

    request_id: str
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None
    token_s: float
    error: str | None = None
    scheduled_s: float | None = None

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None
