"""What a simulated run leaves behind: when each token came out, and each stretch of equal steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import overload

import msgspec
import numpy as np
import numpy.typing as npt

from engine.spec.modes import ENDS, Mode
from engine.spec.plan import ParallelPlan
from engine.spec.steps import StepShape
from engine.transition.planning import Way
from tuner.simulation.steering import SettingsChange

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


# Most tokens per request that one write may hold.
MAX_STAMPS = 64
_COUNT = np.arange(MAX_STAMPS)


class TokenLog:
    """Stamps of the output tokens of R requests, whose output lengths are known beforehand.

    One flat array with a cursor per request, so that a step of hundreds of rows is one write.
    """

    def __init__(self, output_tokens: IntArray) -> None:
        # The stamps of request i lie from _first[i] up to _first[i + 1].
        self._first: IntArray = np.concatenate([[0], np.cumsum(output_tokens)])
        self._next = self._first[:-1].copy()
        self._stamps = np.empty(int(self._first[-1]), dtype=np.float64)

    @property
    def arrays(self) -> tuple[IntArray, IntArray, FloatArray]:
        """Where each request's stamps begin, i8[R + 1], where its next one goes, i8[R], and all
        stamps: what compiled code writes to."""
        return self._first, self._next, self._stamps

    def lacking(self, rows: IntArray) -> IntArray:
        """Those of ``rows`` that have not all their tokens yet."""
        return rows[self._next[rows] < self._first[rows + 1]]

    def last_s(self, row: int) -> float:
        """When the last token of one request came."""
        return float(self._stamps[self._next[row] - 1])

    def stamp(self, rows: IntArray, when_s: float | FloatArray) -> None:
        """One token for each of ``rows``."""
        at = self._next[rows]
        self._stamps[at] = when_s
        self._next[rows] = at + 1

    def stamp_each(self, rows: IntArray, ends_s: FloatArray, *, has_ended: bool = False) -> None:
        """One token for each of ``rows`` at each of ``ends_s`` f8[K], K up to MAX_STAMPS.

        ``has_ended``: some have all their tokens before the last, and get no more.
        """
        at = self._next[rows]
        until = at + len(ends_s)
        # One row of places per request, one column per end.
        places = at[:, None] + _COUNT[: len(ends_s)]
        if has_ended:
            until = np.minimum(until, self._first[rows + 1])
            is_due = places < until[:, None]
            self._stamps[places[is_due]] = np.broadcast_to(ends_s, places.shape)[is_due]
        else:
            self._stamps[places] = ends_s
        self._next[rows] = until

    def stamps(self, row: int) -> tuple[float, ...]:
        """Stamps of one request so far."""
        return tuple(self._stamps[self._first[row] : self._next[row]].tolist())

    def token_s(self, delay_s: float) -> list[tuple[float, ...]]:
        """Stamps of every request so far, ``delay_s`` later."""
        stamps = (self._stamps + delay_s).tolist() if delay_s else self._stamps.tolist()
        bounds = zip(self._first[:-1].tolist(), self._next.tolist(), strict=True)
        return [tuple(stamps[first:end]) for first, end in bounds]


class Segment(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """``num_steps`` steps of one replica, one after the other, that differ in context only.

    ``shape`` is the first one's; each later one has ``shape.num_seqs`` more tokens of context.
    ``start_s`` is when the host began with the first one, ``end_s`` the end of each; ``busy_s`` are
    seconds of the ranks in all (of every stage, with pipelines). ``num_waiting`` and ``kv_usage``
    are as the segment was scheduled.
    """

    replica: int
    shape: StepShape
    start_s: float
    end_s: tuple[float, ...]
    busy_s: float
    num_waiting: int
    kv_usage: float

    @property
    def num_steps(self) -> int:
        return len(self.end_s)


class LazySegments(Sequence[Segment]):
    """``count`` segments that ``make`` makes once somebody looks at one: thousands of objects that
    most runs of a plan are never asked for."""

    def __init__(self, count: int, make: Callable[[], tuple[Segment, ...]]) -> None:
        self._count, self._make = count, make

    @cached_property
    def _made(self) -> tuple[Segment, ...]:
        return self._make()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Segment]:
        return iter(self._made)

    @overload
    def __getitem__(self, index: int) -> Segment: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Segment, ...]: ...

    def __getitem__(self, index: int | slice) -> Segment | tuple[Segment, ...]:
        return self._made[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._made == tuple(other)


@dataclass(frozen=True, kw_only=True)
class AppliedChange:
    """A change that a run saw: decided at ``at_s``, in force at ``in_force_s``.

    A hot change is obeyed by the first step that starts from then on. Where all ranks stopped for
    another plan, that was at ``stopped_s``; where old and new served side by side (``way``), it is
    when the last new one began to. ``num_carried`` unfinished requests went on on other ranks;
    ``is_refused``: one of those would not have fitted, and nothing changed.
    """

    at_s: float
    stopped_s: float
    in_force_s: float
    change: SettingsChange
    num_carried: int = 0
    is_refused: bool = False
    way: Way | None = None

    @property
    def is_another_plan(self) -> bool:
        """Whether other ranks serve since."""
        return self.way is not None and not self.is_refused

    @classmethod
    def refused(cls, change: SettingsChange, at_s: float) -> AppliedChange:
        """A change that a live engine would not make."""
        return cls(at_s=at_s, stopped_s=at_s, in_force_s=at_s, change=change, is_refused=True)


@dataclass(frozen=True, kw_only=True)
class PlanSpell:
    """Seconds of a run that belong to one plan; a restart belongs to the plan it leads to."""

    plan: ParallelPlan
    from_s: float
    to_s: float


@dataclass(frozen=True, kw_only=True)
class DeviceSpell:
    """Seconds in which one replica had ``num_devices``, its start included."""

    num_devices: int
    from_s: float
    to_s: float

    def seconds_until(self, end_s: float) -> float:
        """Device seconds of its part before ``end_s``."""
        return self.num_devices * max(0.0, min(self.to_s, end_s) - self.from_s)


@dataclass(kw_only=True)
class RunCounts:
    """Steps and busy seconds by mode, and what the schedulers had to do."""

    steps: dict[Mode, int] = field(default_factory=lambda: dict.fromkeys(ENDS, 0))
    step_seconds: dict[Mode, float] = field(default_factory=lambda: dict.fromkeys(ENDS, 0.0))
    mode_switches: int = 0
    decode_tokens_in_base: int = 0
    preemptions: int = 0
    scheduled_steps: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0

    @classmethod
    def total(cls, parts: Iterable[RunCounts]) -> RunCounts:
        """Counts of all replicas together."""
        total = cls()
        for part in parts:
            for mode, count in part.steps.items():
                total.count(mode, count, part.step_seconds[mode])
            total.mode_switches += part.mode_switches
            total.decode_tokens_in_base += part.decode_tokens_in_base
            total.preemptions += part.preemptions
            total.scheduled_steps += part.scheduled_steps
            total.prefix_queries += part.prefix_queries
            total.prefix_hits += part.prefix_hits
        return total

    def count(self, mode: Mode, num_steps: int, seconds: float) -> None:
        """Add steps of one mode."""
        self.steps[mode] = self.steps.get(mode, 0) + num_steps
        self.step_seconds[mode] = self.step_seconds.get(mode, 0.0) + seconds

    @property
    def num_steps(self) -> int:
        return sum(self.steps.values())
