"""Which mode a step runs in: measured times, or the threshold rule of Shift Parallelism."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from engine.modes.pace import MAX_STEP_TOKENS
from engine.modes.table import ModeTable
from engine.spec.modes import AUTO, BASE, SHIFT, TABLE, Mode, ModePin, pinned_mode
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings


@dataclass(frozen=True, kw_only=True)
class ModeChooser:
    """Chooses the mode of each step among ``rungs`` (None: all of the plan's).

    The pin ``table`` takes the mode that was measured fastest here for the step's size; without a
    table it acts as ``auto``. ``auto`` takes the rung with the fewest slices whose threshold is not
    below the step's tokens, or the one with the most slices if there is no such rung:
    ``threshold_tokens`` is shift's (the boundary itself is shift; arXiv 2509.16495, section 3),
    ``rung_thresholds`` are those of other rungs, 0 where there is none. Any other pin holds one
    mode. ``coin_seed`` overrules the pin: a coin, seeded by the step's number, chooses. Tests use
    it to show that any mode may follow any other over one KV cache.
    """

    plan: ParallelPlan
    threshold_tokens: int
    rung_thresholds: Mapping[Mode, int] = field(default_factory=dict)
    rungs: tuple[Mode, ...] | None = None
    pin: ModePin = AUTO
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
            rung_thresholds=dict(settings.rung_thresholds),
            rungs=settings.modes,
            pin=settings.pin,
            table=table.only(settings.modes) if table else None,
            coin_seed=coin_seed,
        )

    @cached_property
    def modes(self) -> tuple[Mode, ...]:
        """Modes a step may run in, from base down to shift."""
        return self.plan.modes if self.rungs is None else self.rungs

    def choose(self, num_tokens: int, step_id: int) -> Mode:
        """Mode of step ``step_id`` holding ``num_tokens`` tokens."""
        if (fixed := self._mode_of_all_sizes(step_id)) is not None:
            return fixed
        if self.pin == TABLE and self.table is not None:
            return self.table.faster(num_tokens)
        return next(mode for mode, (_, most) in self._ranges.items() if num_tokens <= most)

    def largest_tokens(self, mode: Mode, at_most: int, step_id: int) -> int:
        """Largest size, up to ``at_most``, at which step ``step_id`` runs in ``mode``; 0: none."""
        if (fixed := self._mode_of_all_sizes(step_id)) is not None:
            return at_most if fixed == mode else 0
        if self.pin == TABLE and self.table is not None:
            return self.table.largest_tokens(mode, at_most)
        above, most = self._ranges.get(mode, (0, 0))
        largest = min(at_most, most)
        return largest if largest > above else 0

    def ranges(self) -> tuple[tuple[Mode, int], ...] | None:
        """Modes with the most tokens of their steps, in order: a step runs in the first that holds
        it. None where a table or a coin chooses."""
        if self.plan.shift and self.coin_seed is not None:
            return None
        if (fixed := self._mode_of_all_sizes(0)) is not None:
            return ((fixed, MAX_STEP_TOKENS),)
        if self.pin == TABLE and self.table is not None:
            return None
        return tuple((mode, most) for mode, (_, most) in self._ranges.items())

    @property
    def largest_shift_tokens(self) -> int:
        """The largest step that may run in shift, whatever its number; 0 when none does."""
        if self.coin_seed is not None and self.plan.shift:
            return MAX_STEP_TOKENS
        return self.largest_tokens(SHIFT, MAX_STEP_TOKENS, 0)

    @cached_property
    def _ranges(self) -> dict[Mode, tuple[int, int]]:
        """By threshold: steps of each mode hold more tokens than the first number and at most as
        many as the second. Fewest slices first; the last mode takes all that is left.
        """
        thresholds = {**self.rung_thresholds, SHIFT: self.threshold_tokens}
        found: dict[Mode, tuple[int, int]] = {}
        above = 0
        for mode in reversed(self.modes):
            is_last = mode == self.modes[0]
            most = MAX_STEP_TOKENS if is_last else max(above, thresholds.get(mode, 0))
            found[mode] = (above, most)
            above = most
        return found

    def _mode_of_all_sizes(self, step_id: int) -> Mode | None:
        """The mode of step ``step_id`` where its size does not matter."""
        if not self.plan.shift:
            return BASE
        if self.coin_seed is not None:
            return self.modes[-1 - _coin(self.coin_seed, step_id, len(self.modes))]
        return pinned_mode(self.pin)


def _coin(seed: int, step_id: int, num_sides: int) -> int:
    """0 to ``num_sides`` - 1, fair per step and without generator state (a multiplicative hash of
    both numbers).
    """
    mixed = ((seed * 0x9E3779B97F4A7C15) ^ (step_id * 0xD1B54A32D192ED03)) & (2**64 - 1)
    mixed = ((mixed ^ (mixed >> 31)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    return (mixed >> 40) % num_sides
