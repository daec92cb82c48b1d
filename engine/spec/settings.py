"""What an engine may be told to run with, and how it is written; no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from engine.spec.errors import EngineError


class Order(StrEnum):
    """Order in which waiting requests are admitted."""

    FCFS = "fcfs"
    PRIORITY = "priority"
    SHORTEST_PROMPT = "shortest_prompt"


@dataclass(frozen=True, kw_only=True)
class Caps:
    """Limits the scheduler keeps; all are hot knobs within the start-up envelope.

    ``max_step_ms`` lets the scheduler size prefill chunks so that a mixed step fits it;
    ``max_queue`` is the admission limit on waiting requests. None = no limit.
    """

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    max_step_ms: float | None = None
    max_queue: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens"):
            if getattr(self, name) < 1:
                raise EngineError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.max_step_ms is not None and not 0 < self.max_step_ms < math.inf:
            raise EngineError(
                f"max_step_ms={self.max_step_ms}: must be above 0 and finite, or left out"
            )
        if self.max_queue is not None and self.max_queue < 0:
            raise EngineError(f"max_queue={self.max_queue}: must be at least 0, or left out")
