"""Requests as callers hand them in, and outputs as the engine hands them back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from engine.spec.errors import RequestError

MAX_SEED = 2**64 - 1
MAX_TOP_K = 2**31 - 1
MAX_CHOICE = 2**31 - 1
MAX_TEMPERATURE = 100.0
MIN_PENALTY = 0.01
MAX_PENALTY = 100.0
MAX_TOKEN_ID = 2**31 - 1
MAX_LOGPROBS = 20
# The error of a request that ended because there was nothing to choose a token by.
NO_FINITE_LOGIT = "the model's logits held no finite value"


class FinishReason(StrEnum):
    """Why a request ended; the first two are OpenAI's words.

    ``deadline``: its ``deadline_s`` passed first.
    """

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    DEADLINE = "deadline"
    ERROR = "error"

    @property
    def is_whole(self) -> bool:
        """Whether the request came to its own end; nothing cut it."""
        return self in (FinishReason.STOP, FinishReason.LENGTH)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen. ``temperature`` 0 = greedy; ``top_k`` 0 = all tokens.

    Applied in this order: ``logit_bias`` (token id, added value), ``repetition_penalty`` on
    tokens of prompt and output, ``frequency_penalty`` and ``presence_penalty`` on tokens of the
    output, temperature, ``min_p`` (share of the best token's probability), top-k, top-p.
    ``logprobs`` asks for the chosen token's log probability and that many best ones, under the
    model's own logits (None: for nothing); ``prompt_logprobs`` asks for the same of every token of
    the prompt but the first, which costs the use of the prefix cache. ``choice`` numbers the
    outputs of one prompt (``n``).

    The same ``seed`` and ``choice`` give the same output on any plan, in any mode, after any
    preemption: randomness is counted by (seed, choice, output position), never by batch row.

    Raises:
        RequestError: a value outside its range, named.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    choice: int = 0
    seed: int = 0
    max_tokens: int = 16
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        checks = (
            (
                0 <= self.temperature <= MAX_TEMPERATURE,
                f"temperature={self.temperature}: must be in 0..100",
            ),
            (0 <= self.top_k <= MAX_TOP_K, f"top_k={self.top_k}: must be in 0..2**31-1 (0 = all)"),
            (0 < self.top_p <= 1, f"top_p={self.top_p}: must be above 0 and at most 1"),
            (0 <= self.min_p <= 1, f"min_p={self.min_p}: must be in 0..1"),
            (
                MIN_PENALTY <= self.repetition_penalty <= MAX_PENALTY,
                f"repetition_penalty={self.repetition_penalty}: must be in 0.01..100",
            ),
            (
                -2 <= self.presence_penalty <= 2,
                f"presence_penalty={self.presence_penalty}: must be in -2..2",
            ),
            (
                -2 <= self.frequency_penalty <= 2,
                f"frequency_penalty={self.frequency_penalty}: must be in -2..2",
            ),
            (
                all(-100 <= value <= 100 for _, value in self.logit_bias),
                "logit_bias: values must be in -100..100",
            ),
            (
                self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS,
                f"logprobs={self.logprobs}: must be in 0..{MAX_LOGPROBS}",
            ),
            (
                self.prompt_logprobs is None or 0 <= self.prompt_logprobs <= MAX_LOGPROBS,
                f"prompt_logprobs={self.prompt_logprobs}: must be in 0..{MAX_LOGPROBS}",
            ),
            (0 <= self.choice <= MAX_CHOICE, f"choice={self.choice}: must be in 0..2**31-1"),
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
        _check_token_ids("logit_bias", (token for token, _ in self.logit_bias))
        _check_token_ids("stop_token_ids", self.stop_token_ids)


def _check_token_ids(name: str, token_ids: Iterable[int]) -> None:
    for token in token_ids:
        if not 0 <= token <= MAX_TOKEN_ID:
            raise RequestError(f"{name}: token id {token} is outside 0..2**31-1")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt to continue. ``arrival_s`` and ``deadline_s`` are on the engine's clock.

    A smaller ``priority`` goes first where the scheduler's order is by priority, and is let in
    first where admission is limited. A request that has not ended at ``deadline_s`` is ended then.
    ``num_let_in``: how many requests of one call are let in with it, itself included; 0: it was let
    in with another. Blocks of the prefix cache are shared among requests of equal ``cache_salt``.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    arrival_s: float = 0.0
    priority: int = 0
    deadline_s: float | None = None
    num_let_in: int = 1
    cache_salt: str = ""

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise RequestError(f"request {self.request_id}: the prompt has no tokens")

    @property
    def max_len(self) -> int:
        """Most tokens the sequence can reach: prompt plus ``max_tokens``."""
        return len(self.prompt_ids) + self.sampling.max_tokens

    @property
    def lengths(self) -> str:
        """The request's id and what its length is made of, to begin a refusal with."""
        return (
            f"request {self.request_id}: {len(self.prompt_ids)} prompt tokens plus "
            f"max_tokens {self.sampling.max_tokens}"
        )


def check_length(request: Request, max_len: int) -> None:
    """Refuse a request that may grow longer than ``max_len`` tokens.

    Raises:
        RequestError: with the numbers.
    """
    if request.max_len > max_len:
        raise RequestError(
            f"{request.lengths} is more than the context of {max_len}; "
            f"shorten the prompt or lower max_tokens"
        )


def check_vocabulary(request: Request, vocab_size: int) -> None:
    """Refuse token ids that the model does not have.

    Raises:
        RequestError: naming the first such id and where it stands.
    """
    sampling = request.sampling
    named = {
        "": request.prompt_ids,
        "stop_token_ids: ": sampling.stop_token_ids,
        "logit_bias: ": [token_id for token_id, _ in sampling.logit_bias],
    }
    for field_name, ids in named.items():
        wrong = next((i for i in ids if not 0 <= i < vocab_size), None)
        if wrong is not None:
            raise RequestError(
                f"request {request.request_id}: {field_name}token id {wrong} is outside the "
                f"vocabulary of {vocab_size}"
            )


@dataclass(frozen=True, kw_only=True)
class TokenLogprobs:
    """Log probabilities at one position of an output or a prompt, under the model's own logits.

    ``rank`` is the place of the token that stands there (1 = most likely); ``top`` the best tokens
    with theirs.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


class RequestOutput(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one step added to one request; ``finish_reason`` is set on the last one.

    ``text`` is the newly printable text ("" while a character is incomplete, or when the engine
    has no tokenizer). ``token_s`` is the engine-clock time at which the tokens were produced,
    ``scheduled_s`` the one at which the request first entered a step (None before that).
    ``logprobs`` has one entry per token if the request asked for them; ``prompt_logprobs`` comes
    with the first token and has one per token of the prompt but the first.
    """

    request_id: str
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None
    token_s: float
    error: str | None = None
    scheduled_s: float | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None
