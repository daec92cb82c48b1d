"""Every feasible combination of knobs as a row of numbers, so that a search moves among them only.

A knob is a number: degrees and caps stand on a log scale. What is off has a place on the scale of
what it is off from: no Shift is one octave below the lowest threshold, no limit on a step's time
one octave above the longest. So a change of one knob by one is a small step for a sampler, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import numpy.typing as npt

from engine.spec.plan import AXES, ParallelPlan
from engine.spec.settings import Caps, Settings
from tuner.spec.space import Space

FloatArray = npt.NDArray[np.float64]
Numbers = dict[str, int]

LINEAR = ("has_rungs", "order")
KNOBS = (
    *AXES,
    "threshold_tokens",
    "has_rungs",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_step_ms",
    "order",
)


@dataclass(frozen=True, kw_only=True)
class Knob:
    """One number of the space: its ends and whether it stands on a log scale."""

    name: str
    low: int
    high: int

    @property
    def is_log(self) -> bool:
        return self.name not in LINEAR


class Grid:
    """The combinations of ``space`` that are feasible, in a fixed order."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self._off = max(1, min(space.thresholds) // 2)
        limits = [limit for limit in space.step_ms if limit is not None]
        self._endless = 2 * max(limits, default=1)

    @cached_property
    def numbers(self) -> npt.NDArray[np.int32]:
        """i4[N, K]: a row per combination, a column per knob of ``KNOBS``."""
        return np.concatenate([self._of_plan(plan) for plan in self.space.plans])

    @cached_property
    def scaled(self) -> FloatArray:
        """f8[N, K]: the same on the scales of the knobs, in octaves."""
        columns = [
            column.astype(float) if name in LINEAR else np.log2(column)
            for name, column in zip(KNOBS, self.numbers.T, strict=True)
        ]
        return np.stack(columns, axis=1)

    @cached_property
    def knobs(self) -> tuple[Knob, ...]:
        """Those with more than one value."""
        lows, highs = self.numbers.min(axis=0), self.numbers.max(axis=0)
        every = (
            Knob(name=name, low=int(low), high=int(high))
            for name, low, high in zip(KNOBS, lows, highs, strict=True)
        )
        return tuple(knob for knob in every if knob.low < knob.high)

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(knob.name for knob in self.knobs)

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Settings]:
        return (self.settings(row) for row in range(len(self)))

    def settings(self, row: int) -> Settings:
        """The combination of that row."""
        found = dict(zip(KNOBS, map(int, self.numbers[row]), strict=True))
        threshold = found["threshold_tokens"]
        has_shift = threshold > self._off
        plan = ParallelPlan(**{axis: found[axis] for axis in AXES}, shift=has_shift)
        limit = found["max_step_ms"]
        caps = Caps(
            max_num_seqs=found["max_num_seqs"],
            max_num_batched_tokens=found["max_num_batched_tokens"],
            max_step_ms=None if limit == self._endless else float(limit),
        )
        order = self.space.orders[found["order"]]
        if not has_shift:
            return Settings(plan=plan, caps=caps, order=order)
        rungs = self.space.ladders[plan] if found["has_rungs"] else ()
        return Settings(
            plan=plan,
            threshold_tokens=threshold,
            rung_thresholds=tuple((mode, most) for mode, most in rungs if most > threshold),
            caps=caps,
            order=order,
        )

    def numbers_of(self, settings: Settings) -> Numbers:
        """Where ``settings`` stand, whether the grid has them or not; beyond its ends, at them."""
        plan, caps = settings.plan, settings.caps
        limit = caps.max_step_ms
        orders = list(self.space.orders)
        found = {
            **{axis: getattr(plan, axis) for axis in AXES},
            "threshold_tokens": max(self._off + 1, settings.threshold_tokens)
            if plan.shift
            else self._off,
            "has_rungs": int(bool(settings.rung_thresholds)),
            "max_num_seqs": caps.max_num_seqs,
            "max_num_batched_tokens": caps.max_num_batched_tokens,
            "max_step_ms": self._endless if limit is None else round(limit),
            "order": orders.index(settings.order) if settings.order in orders else 0,
        }
        return {k.name: min(max(found[k.name], k.low), k.high) for k in self.knobs}

    def place(self, settings: Settings) -> FloatArray:
        """f8[K]: where ``settings`` stand among the rows of :attr:`scaled`."""
        found = self.scaled[0].copy()
        for name, value in self.numbers_of(settings).items():
            found[KNOBS.index(name)] = value if name in LINEAR else np.log2(value)
        return np.asarray(found)

    def nearest(self, numbers: Mapping[str, int], taken: Iterable[int] = ()) -> int:
        """The row closest to ``numbers`` (those that are missing do not count) that is not
        ``taken``, by the sum of distances in octaves; the first of equals."""
        far = self._distances(numbers)
        out = list(taken)
        if len(set(out)) < len(self):
            far[out] = np.inf
        return int(np.argmin(far))

    def is_idle(self, knob: Knob, numbers: Mapping[str, int]) -> bool:
        """Whether ``knob`` has only one value in the combinations closest to ``numbers``."""
        if not all(axis in numbers for axis in AXES if axis in self._names):
            return False
        far = self._distances(numbers)
        near = self.numbers[far <= far.min() + 1e-9, KNOBS.index(knob.name)]
        return bool((near == near[0]).all())

    def row_of(self, settings: Settings) -> int | None:
        """The row of ``settings``; None where the grid does not have them."""
        row = self.nearest(self.numbers_of(settings))
        return row if self.settings(row) == settings else None

    def _distances(self, numbers: Mapping[str, int]) -> FloatArray:
        columns = [KNOBS.index(name) for name in numbers]
        wanted = [v if n in LINEAR else np.log2(v) for n, v in numbers.items()]
        far: FloatArray = np.abs(self.scaled[:, columns] - np.array(wanted)).sum(axis=1)
        return far

    def _of_plan(self, plan: ParallelPlan) -> npt.NDArray[np.int32]:
        space = self.space
        caps = [
            (seqs, tokens)
            for seqs, tokens in product(space.num_seqs, space.batched_tokens)
            if (plan, seqs, tokens) not in space.refused
        ]
        limits = [self._endless if limit is None else limit for limit in space.step_ms]
        rows = [
            (plan.dp, plan.pp, plan.sp, plan.tp, threshold, has_rungs, *pair, limit, order)
            for threshold, has_rungs in self._mode_rules(plan)
            for pair in caps
            for limit in sorted(limits)
            for order in range(len(space.orders))
        ]
        return np.array(rows, dtype=np.int32).reshape(-1, len(KNOBS))

    def _mode_rules(self, plan: ParallelPlan) -> list[tuple[int, int]]:
        """Thresholds with and without rungs; those without a rung left above the threshold once."""
        if not plan.shift:
            return [(self._off, 0)]
        highest = max((most for _, most in self.space.ladders.get(plan, ())), default=0)
        return [
            (threshold, has_rungs)
            for threshold in self.space.thresholds
            for has_rungs in ((0, 1) if highest > threshold else (0,))
        ]
