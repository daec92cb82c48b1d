"""Everything the engine's process and its front process say to each other.

Frames of msgpack (see ``engine.wire.frames``). The front numbers its requests and calls
from one counter; answers carry that number. Stamps need no translation: all processes of a
machine share the monotonic clock.
"""

from __future__ import annotations

import msgspec

from engine.modes.table import ModeTable
from engine.policy.document import EnginePolicy
from engine.policy.knobs import AppliedPolicy, Knob
from engine.replica.telemetry import EngineStats
from engine.server.defaults import SamplingDefaults
from engine.server.keys import ServerKeys
from engine.spec import errors
from engine.spec.errors import EngineError, OverloadError, PolicyError, RankError
from engine.spec.inventory import Inventory
from engine.spec.limits import RequestLimits
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.request import FinishReason, Request, TokenLogprobs
from engine.spec.settings import Caps
from engine.transition.costs import DEFAULT_LIMITS, PricedTransition, TransitionLimits


class WireError(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An engine error by its class name; ``kind`` is empty for a bug of ours."""

    kind: str
    message: str
    needs: str | None = None
    rank: int | None = None
    retry_s: float = 0.0

    @classmethod
    def of(cls, error: BaseException) -> WireError:
        return cls(
            kind=type(error).__name__ if isinstance(error, EngineError) else "",
            message=str(error) if isinstance(error, EngineError) else repr(error),
            needs=getattr(error, "needs", None),
            rank=getattr(error, "rank", None),
            retry_s=getattr(error, "retry_s", 0.0),
        )

    def to_error(self) -> Exception:
        """The error it was; RuntimeError for a bug."""
        kind = getattr(errors, self.kind, None) if self.kind else RuntimeError
        if kind is None:
            return EngineError(self.message)
        assert isinstance(kind, type)
        assert issubclass(kind, Exception)
        if issubclass(kind, PolicyError):
            return kind(self.message, needs=self.needs)
        if issubclass(kind, OverloadError):
            return kind(self.message, retry_s=self.retry_s)
        if issubclass(kind, RankError):
            return kind(self.message, rank=self.rank)
        return kind(self.message)


# -- from the front ----------------------------------------------------------------------------


class Submit(msgspec.Struct, tag="submit", kw_only=True):
    """A request to accept; answered by ``Accepted`` or ``CallFailed``, then by ``Outputs``."""

    number: int
    request: Request


class Abort(msgspec.Struct, tag="abort", kw_only=True):
    """End a request: its client has gone, or (``stop``) a stop string was found in its text.

    An id that is not in progress (any more) does nothing.
    """

    request_id: str
    reason: FinishReason = FinishReason.ABORT


class Apply(msgspec.Struct, tag="apply", kw_only=True):
    """Change the policy; answered by ``Applied``."""

    number: int
    policy: EnginePolicy
    expected: EnginePolicy | None = None
    limits: TransitionLimits = DEFAULT_LIMITS


class Preview(msgspec.Struct, tag="preview", kw_only=True):
    """What would a change take? Answered by ``Previewed``."""

    number: int
    policy: EnginePolicy
    limits: TransitionLimits = DEFAULT_LIMITS


class AskStats(msgspec.Struct, tag="ask_stats", kw_only=True):
    """Answered by ``Stats``."""

    number: int


class AskKnobs(msgspec.Struct, tag="ask_knobs", kw_only=True):
    """Answered by ``Knobs``."""

    number: int


class AskModeTables(msgspec.Struct, tag="ask_mode_tables", kw_only=True):
    """Answered by ``ModeTables``."""

    number: int


class FrontReady(msgspec.Struct, tag="front_ready"):
    """The front accepts connections."""


class Pong(msgspec.Struct, tag="pong"):
    """The answer to ``Ping``, from the front's event loop."""


class FrontFailed(msgspec.Struct, tag="front_failed", kw_only=True):
    """The front cannot start; it ends."""

    error: WireError


class Lend(msgspec.Struct, tag="lend", kw_only=True):
    """A client waits for an answer; its socket's descriptor travels with this."""

    client: int


class BeginStream(msgspec.Struct, tag="begin_stream", kw_only=True):
    """The head of a lent client's stream of events is written next."""

    client: int
    is_chunked: bool


class TakeBack(msgspec.Struct, tag="take_back", kw_only=True):
    """The last part of a lent client's answer is written next."""

    client: int


Ask = Apply | Preview | AskStats | AskKnobs | AskModeTables
Loan = Lend | BeginStream | TakeBack
FromFront = Submit | Abort | Ask | Loan | FrontReady | Pong | FrontFailed


# -- to the front ------------------------------------------------------------------------------


class Ping(msgspec.Struct, tag="ping"):
    """Asks a front that is ready whether its event loop still turns."""


class EngineState(msgspec.Struct, tag="state", frozen=True, kw_only=True):
    """The state from which the front answers without asking; sent when it changes."""

    policy: EnginePolicy
    held_plan: ParallelPlan
    max_model_len: int
    is_healthy: bool


class FrontSetup(msgspec.Struct, tag="setup", frozen=True, kw_only=True):
    """First message to a front, with the listening socket's descriptor; a state follows."""

    model_dir: str
    model_name: str
    engine_name: str
    keys: ServerKeys
    drain_s: int
    model: ModelConfig
    envelope: Caps
    inventory: Inventory
    paced_as: str | None
    defaults: SamplingDefaults
    limits: RequestLimits
    logs_requests: bool = False


class OutputRow(msgspec.Struct, array_like=True, gc=False):
    """One ``RequestOutput`` without its text, which the front makes."""

    number: int
    token_ids: tuple[int, ...]
    token_s: float
    finish_reason: FinishReason | None
    scheduled_s: float | None
    error: str | None
    logprobs: tuple[TokenLogprobs, ...]
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()


class Outputs(msgspec.Struct, tag="outputs", kw_only=True):
    """The outputs of all requests since the last such message, oldest first."""

    rows: list[OutputRow]


class Accepted(msgspec.Struct, tag="accepted", kw_only=True):
    number: int


class Applied(msgspec.Struct, tag="applied", kw_only=True):
    number: int
    applied: AppliedPolicy


class Previewed(msgspec.Struct, tag="previewed", kw_only=True):
    number: int
    found: PricedTransition | None


class Stats(msgspec.Struct, tag="stats", kw_only=True):
    number: int
    stats: EngineStats


class Knobs(msgspec.Struct, tag="knobs", kw_only=True):
    number: int
    knobs: list[Knob]


class ModeTables(msgspec.Struct, tag="mode_tables", kw_only=True):
    number: int
    tables: list[ModeTable | None]


class CallFailed(msgspec.Struct, tag="failed", kw_only=True):
    """A submission or call raised."""

    number: int
    error: WireError


Answer = Accepted | Applied | Previewed | Stats | Knobs | ModeTables | CallFailed
ToFront = (
    FrontSetup
    | EngineState
    | Ping
    | Outputs
    | Accepted
    | Applied
    | Previewed
    | Stats
    | Knobs
    | ModeTables
    | CallFailed
)
