"""Which mode a step runs in: measured times, or the threshold rule of Shift Parallelism."""

from __future__ import annotations

from dataclasses import dataclass

from engine.modes.pace import MAX_STEP_TOKENS
from engine.modes.table import ModeTable
from engine.spec.errors import PolicyError
from engine.spec.plan import Mode, ParallelPlan

MODE_PINS = ("table", "auto", "base", "shift")
MODE_CHOICES = "table, auto, base, shift or random:SEED"


@dataclass(frozen=True, kw_only=True)
class ModeChooser:
    """Chooses the mode of each step.

    ``table``: the faster mode of the step's size as it was measured here; while there is no
    table, as ``auto``. ``auto``: more than ``threshold_tokens`` tokens run in base, else in shift
    (the boundary itself is shift; arXiv 2509.16495, section 3). ``base`` and ``shift`` pin the
    mode; ``random:SEED`` flips it per step from the step's number, for tests of KV invariance.

    Raises:
        PolicyError: an unknown pin, a negative threshold, or shift pinned on a plan without it.
    """

    plan: ParallelPlan
    threshold_tokens: int
    pin: str = "auto"
    table: ModeTable | None = None

    def __post_init__(self) -> None:
        if self.threshold_tokens < 0:
            raise PolicyError(f"threshold_tokens={self.threshold_tokens}: must be at least 0")
        word, _, seed = self.pin.partition(":")
        is_known = self.pin in MODE_PINS or (word == "random" and seed.isdecimal())
        if not is_known:
            raise PolicyError(f"mode {self.pin!r} is not known; use {MODE_CHOICES}")
        if self.pin == "shift" and not self.plan.shift:
            raise PolicyError(
                f"mode 'shift' needs a plan with Shift on; this one is {self.plan}", needs="reshape"
            )

    def choose(self, num_tokens: int, step_id: int) -> Mode:
        """Mode of step ``step_id`` holding ``num_tokens`` tokens."""
        if (fixed := self._mode_of_all_sizes(step_id)) is not None:
            return fixed
        if self.pin == "table" and self.table is not None:
            return self.table.faster(num_tokens)
        return Mode.BASE if num_tokens > self.threshold_tokens else Mode.SHIFT

    def largest_tokens(self, mode: Mode, at_most: int, step_id: int) -> int:
        """The largest size of step ``step_id``, up to ``at_most``, to run in ``mode``; 0: none."""
        if (fixed := self._mode_of_all_sizes(step_id)) is not None:
            return at_most if fixed is mode else 0
        if self.pin == "table" and self.table is not None:
            return self.table.largest_tokens(mode, at_most)
        if mode is Mode.SHIFT:
            return min(at_most, self.threshold_tokens)
        return at_most if at_most > self.threshold_tokens else 0

    @property
    def largest_shift_tokens(self) -> int:
        """The largest step that may run in shift, whatever its number; 0 when none does."""
        if not self.plan.shift or self.pin == "base":
            return 0
        if self.pin == "shift" or self.pin.startswith("random"):
            return MAX_STEP_TOKENS
        return self.largest_tokens(Mode.SHIFT, MAX_STEP_TOKENS, 0)

    def _mode_of_all_sizes(self, step_id: int) -> Mode | None:
        """The mode of step ``step_id`` where its size does not matter."""
        if not self.plan.shift or self.pin == "base":
            return Mode.BASE
        if self.pin == "shift":
            return Mode.SHIFT
        if self.pin.startswith("random"):
            return _coin(int(self.pin.partition(":")[2]), step_id)
        return None


def _coin(seed: int, step_id: int) -> Mode:
    """A fair coin per step without generator state (a multiplicative hash of both numbers)."""
    mixed = ((seed * 0x9E3779B97F4A7C15) ^ (step_id * 0xD1B54A32D192ED03)) & (2**64 - 1)
    mixed = ((mixed ^ (mixed >> 31)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    return Mode.BASE if (mixed >> 40) & 1 else Mode.SHIFT
