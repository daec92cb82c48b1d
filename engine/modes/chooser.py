"""Which mode a step runs in: measured times, or the threshold rule of Shift Parallelism."""

from __future__ import annotations

from dataclasses import dataclass

from engine.modes.pace import MAX_STEP_TOKENS
from engine.modes.table import ModeTable
from engine.spec.plan import Mode, ParallelPlan
from engine.spec.settings import ModePin, Settings


@dataclass(frozen=True, kw_only=True)
class ModeChooser:
    """Chooses the mode of each step.

    The pin ``table`` takes the mode that was measured faster here for the step's size; without a
    table it acts as ``auto``. ``auto`` runs steps of more than ``threshold_tokens`` tokens in base
    and others in shift (the boundary itself is shift; arXiv 2509.16495, section 3). ``base`` and
    ``shift`` hold one mode. ``coin_seed`` overrules the pin: a coin made from the step's number
    chooses. With it tests show that any mode may follow any other over one KV cache.
    """

    plan: ParallelPlan
    threshold_tokens: int
    pin: ModePin = ModePin.AUTO
    table: ModeTable | None = None
    coin_seed: int | None = None

    @classmethod
    def of(
        cls, settings: Settings, *, table: ModeTable | None = None, coin_seed: int | None = None
    ) -> ModeChooser:
        """The mode rule of an engine with these settings."""
        return cls(
            plan=settings.plan,
            threshold_tokens=settings.threshold_tokens,
            pin=settings.pin,
            table=table,
            coin_seed=coin_seed,
        )

    def choose(self, num_tokens: int, step_id: int) -> Mode:
        """Mode of step ``step_id`` holding ``num_tokens`` tokens."""
        if (fixed := self._mode_of_all_sizes(step_id)) is not None:
            return fixed
        if self.pin is ModePin.TABLE and self.table is not None:
            return self.table.faster(num_tokens)
        return Mode.BASE if num_tokens > self.threshold_tokens else Mode.SHIFT

    def largest_tokens(self, mode: Mode, at_most: int, step_id: int) -> int:
        """Largest size, up to ``at_most``, at which step ``step_id`` runs in ``mode``; 0: none."""
        if (fixed := self._mode_of_all_sizes(step_id)) is not None:
            return at_most if fixed is mode else 0
        if self.pin is ModePin.TABLE and self.table is not None:
            return self.table.largest_tokens(mode, at_most)
        if mode is Mode.SHIFT:
            return min(at_most, self.threshold_tokens)
        return at_most if at_most > self.threshold_tokens else 0

    @property
    def largest_shift_tokens(self) -> int:
        """The largest step that may run in shift, whatever its number; 0 when none does."""
        if self.coin_seed is not None and self.plan.shift:
            return MAX_STEP_TOKENS
        return self.largest_tokens(Mode.SHIFT, MAX_STEP_TOKENS, 0)

    def _mode_of_all_sizes(self, step_id: int) -> Mode | None:
        """The mode of step ``step_id`` where its size does not matter."""
        if not self.plan.shift:
            return Mode.BASE
        if self.coin_seed is not None:
            return _coin(self.coin_seed, step_id)
        match self.pin:
            case ModePin.BASE:
                return Mode.BASE
            case ModePin.SHIFT:
                return Mode.SHIFT
            case ModePin.AUTO | ModePin.TABLE:
                return None


def _coin(seed: int, step_id: int) -> Mode:
    """A fair coin per step without generator state (a multiplicative hash of both numbers)."""
    mixed = ((seed * 0x9E3779B97F4A7C15) ^ (step_id * 0xD1B54A32D192ED03)) & (2**64 - 1)
    mixed = ((mixed ^ (mixed >> 31)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    return Mode.BASE if (mixed >> 40) & 1 else Mode.SHIFT
