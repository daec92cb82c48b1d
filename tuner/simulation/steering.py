"""Changes in the middle of a simulated run: who asks for them, what they are, what they cost.

The simulator asks a :class:`Steering` at the times it names and puts what it answers in force as
a live engine would: hot settings at the next step, another plan by a reshape, in which ranks are
away for ``cost_s`` seconds and every accepted request waits and goes on from its tokens so far.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.policy.document import KnobClass, check_envelope, classify, moves_ranks
from engine.spec.measurement import RequestTiming
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from tuner.spec.errors import TunerError

# Seconds that a reshape to a plan keeps the ranks away.
ReshapeSeconds = Callable[[ParallelPlan], float]

NEVER_S = math.inf
# How soon a planned change is tried again if it came while ranks were away.
RETRY_S = 1.0


class RunView(Protocol):
    """A simulated engine at one moment, as its operator would see it.

    ``num_running`` and ``num_waiting`` count accepted requests, those that wait for a reshape to
    end among the latter; ``num_refused`` those that were turned away so far; ``kv_usage`` is 0..1
    per replica. ``envelope``: the most that caps may
    be raised to. ``held_plan``: the plan whose shards ranks hold.
    """

    @property
    def settings(self) -> Settings: ...
    @property
    def held_plan(self) -> ParallelPlan: ...
    @property
    def envelope(self) -> Caps: ...
    @property
    def is_reshaping(self) -> bool: ...
    @property
    def num_running(self) -> int: ...
    @property
    def num_waiting(self) -> int: ...
    @property
    def num_refused(self) -> int: ...
    @property
    def kv_usage(self) -> tuple[float, ...]: ...

    def timings_since(self, since_s: float) -> Sequence[RequestTiming]:
        """Accepted requests that ended at ``since_s`` or later, in the order of their ends: what
        ends at the time of a question is seen by the next one."""
        ...


@dataclass(frozen=True, kw_only=True)
class SettingsChange:
    """Settings to put in force: the knob class of each difference, and seconds that ranks take to
    start (where all stop for them: without ranks)."""

    settings: Settings
    classes: dict[str, KnobClass]
    cost_s: float = 0.0

    @classmethod
    def between(
        cls,
        old: Settings,
        new: Settings,
        *,
        envelope: Caps,
        reshape_s: ReshapeSeconds,
        held: ParallelPlan | None = None,
    ) -> SettingsChange | None:
        """What it takes to go from ``old`` to ``new``; None when they are the same. ``held``: the
        plan whose shards ranks hold (None: that of ``old``).

        Raises:
            PolicyError: caps above the envelope: a live engine refuses them too.
        """
        check_envelope(new.caps, envelope)
        classes = classify(old, new, envelope, held=held)
        if not classes:
            return None
        cost_s = reshape_s(new.plan) if moves_ranks(classes) else 0.0
        return cls(settings=new, classes=classes, cost_s=cost_s)

    @property
    def moves_ranks(self) -> bool:
        """Whether ranks start or end for it."""
        return moves_ranks(self.classes)

    @property
    def knob_class(self) -> KnobClass:
        """The dearest class of all differences."""
        return max(self.classes.values(), key=lambda kind: kind.rank)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """The answer to one question: what to change now, and when to be asked again."""

    change: SettingsChange | None
    next_s: float


class Steering(Protocol):
    """Decides changes in a simulated run. One run at a time: ``first_s`` starts it afresh."""

    def first_s(self) -> float:
        """When to be asked first, virtual seconds; ``inf``: never."""
        ...

    def ask(self, now_s: float, view: RunView) -> Turn:
        """What to change at ``now_s``; ``next_s`` lies after it."""
        ...


def free_reshapes(_plan: ParallelPlan) -> float:
    """Ranks are never away: for questions in which the cost of a change must not matter."""
    return 0.0


class PlannedChanges:
    """Changes at times known beforehand, each to settings in full.

    Raises:
        TunerError: times that do not rise, or one that no run can reach.
    """

    def __init__(
        self,
        changes: Sequence[tuple[float, Settings]],
        *,
        reshape_s: ReshapeSeconds = free_reshapes,
    ) -> None:
        self._times = [at_s for at_s, _ in changes]
        self._settings = [settings for _, settings in changes]
        self._reshape_s = reshape_s
        is_rising = all(a < b for a, b in zip(self._times, self._times[1:], strict=False))
        if not is_rising or not all(0 <= at_s < math.inf for at_s in self._times):
            raise TunerError(f"planned changes at {self._times} s: times must rise from 0 or later")

    def first_s(self) -> float:
        return self._times[0] if self._times else NEVER_S

    def ask(self, now_s: float, view: RunView) -> Turn:
        if view.is_reshaping:
            return Turn(change=None, next_s=now_s + RETRY_S)
        following = bisect_right(self._times, now_s)
        next_s = self._times[following] if following < len(self._times) else NEVER_S
        if not following:
            return Turn(change=None, next_s=next_s)
        change = SettingsChange.between(
            view.settings,
            self._settings[following - 1],
            envelope=view.envelope,
            reshape_s=self._reshape_s,
            held=view.held_plan,
        )
        return Turn(change=change, next_s=next_s)
