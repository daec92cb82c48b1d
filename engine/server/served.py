"""What the HTTP server needs of an engine, wherever that engine runs."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

from engine.modes.table import ModeTable
from engine.policy.document import EnginePolicy
from engine.policy.knobs import AppliedPolicy, Knob
from engine.replica.stream import OnOutput
from engine.replica.telemetry import EngineStats
from engine.spec.inventory import Inventory
from engine.spec.model import ModelConfig
from engine.spec.plan import ParallelPlan
from engine.spec.request import FinishReason, Request
from engine.spec.settings import Caps
from engine.transition.costs import DEFAULT_LIMITS, PricedTransition, TransitionLimits


class ServedEngine(Protocol):
    """One running engine, in this process (``Engine``) or in another (``RemoteEngine``).

    Properties and ``abort`` answer at once and may be used on an event loop; a remote engine's
    properties may be a twentieth of a second old, except after an ``apply`` of its own.
    ``stats`` and what follows it may wait for the engine: call them from a thread.
    Every member may be used from any thread and raises :class:`EngineError` kinds only.
    """

    @property
    def model_dir(self) -> Path: ...

    @property
    def model(self) -> ModelConfig: ...

    @property
    def policy(self) -> EnginePolicy:
        """The policy in force."""
        ...

    @property
    def held_plan(self) -> ParallelPlan:
        """The plan whose shards ranks hold; the policy's may be another on its ladder."""
        ...

    @property
    def envelope(self) -> Caps:
        """The most that caps may be raised to without a restart."""
        ...

    @property
    def inventory(self) -> Inventory:
        """How many ranks, and how much memory, plans may use."""
        ...

    @property
    def paced_as(self) -> str | None:
        """The hardware that steps are paced as; None if a model runs."""
        ...

    @property
    def max_model_len(self) -> int:
        """Longest sequence (prompt plus output) in tokens."""
        ...

    @property
    def is_healthy(self) -> bool:
        """Whether every replica serves; requests are taken while one does."""
        ...

    def submit(self, request: Request, on_output: OnOutput) -> Future[None] | None:
        """Hand a request in; returns None if it is accepted already, else a future that will tell.

        ``on_output`` is called on a thread of the engine and must not block.

        Raises (or the future does):
            RequestError: it could never run.
            QueueFullError: the admission limit is reached.
            RankError: no replica serves.
        """
        ...

    def abort(self, request_id: str, *, reason: FinishReason = FinishReason.ABORT) -> None:
        """End a request with ``reason``; unknown ids do nothing.

        ``reason`` is ``stop`` if whoever makes the text has found a stop string in it.
        """
        ...

    def stats(self) -> EngineStats:
        """Gauges and counters since start."""
        ...

    def capabilities(self) -> list[Knob]:
        """Every knob with its class, range, current value and measured cost."""
        ...

    def mode_tables(self) -> list[ModeTable | None]:
        """Each replica's measured step times of each mode; None where none were taken."""
        ...

    def apply(
        self,
        policy: EnginePolicy,
        *,
        expected: EnginePolicy | None = None,
        limits: TransitionLimits = DEFAULT_LIMITS,
    ) -> AppliedPolicy:
        """Put ``policy`` in force, if ``expected`` (when given) still is. Raises as Engine does."""
        ...

    def preview(
        self, policy: EnginePolicy, *, limits: TransitionLimits = DEFAULT_LIMITS
    ) -> PricedTransition | None:
        """How ranks would start and end for ``policy``; None if none would. Raises as Engine
        does."""
        ...
