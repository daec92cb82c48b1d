"""Which mode a step runs in: the threshold rule of Shift Parallelism, and its overrides."""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import PolicyError
from engine.plan import Mode, ParallelPlan

MODE_CHOICES = "auto, base, shift or random:SEED"


@dataclass(frozen=True, kw_only=True)
class ModeChooser:
    """Chooses the mode of each step.

    ``auto``: more than ``threshold_tokens`` tokens run in base, else in shift (the boundary
    itself is shift; arXiv 2509.16495, section 3). ``base`` and ``shift`` pin the mode;
    ``random:SEED`` flips it per step from the step's number, for tests of KV invariance.

    Raises:
        PolicyError: an unknown pin, a negative threshold, or shift pinned on a plan without it.
    """

    plan: ParallelPlan
    threshold_tokens: int
    pin: str = "auto"

    def __post_init__(self) -> None:
        if self.threshold_tokens < 0:
            raise PolicyError(f"threshold_tokens={self.threshold_tokens}: must be at least 0")
        word, _, seed = self.pin.partition(":")
        is_known = self.pin in ("auto", "base", "shift") or (word == "random" and seed.isdecimal())
        if not is_known:
            raise PolicyError(f"mode {self.pin!r} is not known; use {MODE_CHOICES}")
        if self.pin == "shift" and not self.plan.shift:
            raise PolicyError(
                f"mode 'shift' needs a plan with Shift on; this one is {self.plan}", needs="reshape"
            )

    def choose(self, num_tokens: int, step_id: int) -> Mode:
        """Mode of step ``step_id`` holding ``num_tokens`` tokens."""
        if not self.plan.shift or self.pin == "base":
            return Mode.BASE
        if self.pin == "shift":
            return Mode.SHIFT
        if self.pin.startswith("random"):
            return _coin(int(self.pin.partition(":")[2]), step_id)
        return Mode.BASE if num_tokens > self.threshold_tokens else Mode.SHIFT


def _coin(seed: int, step_id: int) -> Mode:
    """A fair coin per step without generator state (a multiplicative hash of both numbers)."""
    mixed = ((seed * 0x9E3779B97F4A7C15) ^ (step_id * 0xD1B54A32D192ED03)) & (2**64 - 1)
    mixed = ((mixed ^ (mixed >> 31)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    return Mode.BASE if (mixed >> 40) & 1 else Mode.SHIFT
