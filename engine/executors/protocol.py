"""The executor contract: where the steps of one replica run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from engine.spec.steps import StepPlan, StepResult, StepShape

# Whether nobody needs a start any more; the starting thread asks while the start is under way.
IsEnding = Callable[[], bool]
ENDED = "it was ended while it started"


def never_ends() -> bool:
    """The ``IsEnding`` of a start that nobody ends."""
    return False


@dataclass(frozen=True, kw_only=True)
class ExecutorInfo:
    """What a started executor offers: KV blocks per rank, resident bytes per rank, depth.

    ``depth`` is the number of steps that run at once (one per pipeline stage); one more may be
    queued behind them. ``computes_by`` says in words what runs a rank's products.
    """

    num_kv_blocks: int
    weight_bytes: tuple[int, ...]
    kv_bytes: tuple[int, ...]
    depth: int
    computes_by: str = ""


class Executor(Protocol):
    """Runs the steps of one replica, first in, first out.

    Owned and called by one thread. ``submit`` does not wait for the step; ``collect`` waits for
    the oldest submitted one. At most ``info.depth`` + 1 steps are in flight: the last of them is
    queued, and begins without the host's help. Every implementation passes
    ``tests/contracts/executor.py``.
    """

    @property
    def needs_inputs(self) -> bool:
        """Whether steps must carry token ids and tables (a simulated step needs its shape only)."""
        ...

    def start(self) -> ExecutorInfo:
        """Load weights, allocate KV and get ready.

        Raises:
            CheckpointError: the model folder is at fault.
            RankError: a rank died, raised or took longer than the start timeout.
        """
        ...

    def submit(self, step: StepPlan) -> None:
        """Hand over one step. Raises RankError when a rank is already known to be gone."""
        ...

    def is_ready(self, timeout_s: float) -> bool:
        """Whether :meth:`collect` would return or raise at once; waits ``timeout_s`` for that."""
        ...

    def collect(self, timeout_s: float | None = None) -> StepResult:
        """Wait for the oldest step in flight and return its result (None: for the step timeout).

        Raises:
            RankError: a rank died, raised, or did not answer in time.
        """
        ...

    def check(self) -> None:
        """Check that the ranks are alive while no step is in flight.

        Raises:
            RankError: a rank is gone.
        """
        ...

    def close(self) -> None:
        """End all ranks and free everything. Safe to call twice and after a failure."""
        ...


class StepTimer(Protocol):
    """How long a step takes on hardware that may not be here (the tuner's step model)."""

    def stage_seconds(self, shape: StepShape) -> tuple[float, ...]:
        """Seconds each pipeline stage is busy with a step of this shape (length pp)."""
        ...

    def host_seconds(self, shape: StepShape) -> float:
        """Seconds of scheduling and output work between steps, on the critical path."""
        ...


class Clock(Protocol):
    """Time in seconds, from an arbitrary zero."""

    def now(self) -> float:
        """Seconds since the clock's zero; never goes back."""
        ...

    def sleep_until(self, when_s: float) -> None:
        """Return once ``now() >= when_s``. A virtual clock jumps there."""
        ...
