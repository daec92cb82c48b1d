"""Whether an engine's steps still take as long as its recommendation assumes, or have drifted away.

Steps are compared and not latencies, because the time of a step of a given size depends little on
the load. What an engine reports (mode, size class, steps, seconds, tokens) is compared with the
same figures of the simulation that the recommendation comes from. Pure; the caller keeps the
memory.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from engine.spec.modes import Mode, read_mode
from policies.clock import ahead_s, back
from policies.errors import PolicyInputError

# Fewer steps than this say nothing about their size class.
LEAST_STEPS = 20
# This share of an engine's time has to be in steps that were foreseen.
LEAST_SHARE = 0.5
# Nothing is said about steps that are larger than the foreseen sizes by more than this factor.
MOST_BEYOND = 1.5
# What is learned live is clamped to these factors, as other systems do.
LEAST_RATIO, MOST_RATIO = 0.5, 2.0


@dataclass(frozen=True, kw_only=True)
class StepSum:
    """Steps of one mode and size class (``tokens_up_to``): their seconds and tokens in all."""

    mode: Mode
    tokens_up_to: int
    steps: int
    seconds: float
    tokens: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def mean_tokens(self) -> float:
        return self.tokens / self.steps

    @property
    def mean_seconds(self) -> float:
        return self.seconds / self.steps


def step_sums(documents: Iterable[Mapping[str, Any]]) -> tuple[StepSum, ...]:
    """What heartbeats and recommendations tell about steps, added up by mode and size class.

    Raises:
        PolicyInputError: a part that cannot be read.
    """
    totals: dict[tuple[Mode, int], list[float]] = defaultdict(lambda: [0, 0.0, 0])
    try:
        for raw in documents:
            total = totals[read_mode(raw["mode"]), int(raw["tokens_up_to"])]
            for at, name in enumerate(("steps", "seconds", "tokens")):
                total[at] += raw[name]
    except (KeyError, TypeError, ValueError) as error:
        raise PolicyInputError(f"steps of an engine cannot be read: {error!r}") from error
    return tuple(
        StepSum(mode=mode, tokens_up_to=size, steps=int(steps), seconds=seconds, tokens=int(tokens))
        for (mode, size), (steps, seconds, tokens) in sorted(totals.items())
        if steps and seconds > 0 and tokens
    )


class ForeseenSteps:
    """Seconds of a step by its mode and tokens, between the size classes that a simulation had."""

    def __init__(self, sums: Iterable[StepSum]) -> None:
        points: dict[Mode, list[tuple[float, float]]] = defaultdict(list)
        for found in sums:
            if found.steps >= LEAST_STEPS:
                points[found.mode].append(
                    (math.log(found.mean_tokens), math.log(found.mean_seconds))
                )
        self._points = {mode: np.array(sorted(found)).T for mode, found in points.items()}

    def seconds(self, mode: Mode, tokens: float) -> float | None:
        """The predicted seconds of one step; None where no such step was foreseen."""
        points = self._points.get(mode)
        if points is None:
            return None
        at, beyond = math.log(tokens), math.log(MOST_BEYOND)
        if not points[0][0] - beyond <= at <= points[0][-1] + beyond:
            return None
        return math.exp(float(np.interp(at, points[0], points[1])))

    def log_ratio(self, seen: Sequence[StepSum]) -> float | None:
        """How much longer the steps seen took than foreseen, as a log ratio; None: too few steps
        of the kinds that were foreseen."""
        observed = predicted = 0.0
        num_steps = 0
        for found in seen:
            each_s = self.seconds(found.mode, found.mean_tokens)
            if each_s is not None:
                observed += found.seconds
                predicted += found.steps * each_s
                num_steps += found.steps
        whole = math.fsum(found.seconds for found in seen)
        if num_steps < LEAST_STEPS or observed < LEAST_SHARE * whole:
            return None
        return math.log(observed / predicted)


@dataclass(frozen=True, kw_only=True)
class DriftLimits:
    """When it is drift.

    ``tolerance``: what steps may always be off, 0.1 as a share. What they are off beyond that is
    summed up, reading by reading (a two-sided CUSUM of the log ratio); at ``threshold`` the alarm
    rises. With 3, noise of 5 % that lasts for minutes raises none in a day, and a slowdown of a
    fifth takes a quarter of an hour (benchmarks/drift_alarms.py). ``every_s`` lies between two
    readings. ``alpha`` smooths the ratio that is told.

    Raises:
        PolicyInputError: a limit outside its range.
    """

    tolerance: float = 0.1
    threshold: float = 3.0
    every_s: float = 30.0
    alpha: float = 0.3

    def __post_init__(self) -> None:
        for name in ("tolerance", "threshold", "every_s", "alpha"):
            if not getattr(self, name) > 0:
                raise PolicyInputError(f"drift limits: {name}={getattr(self, name)}: not above 0")


@dataclass(frozen=True, kw_only=True)
class DriftMemory:
    """What one reading hands to the next.

    ``read_s``: when it was. ``log_ratio`` of seen over foreseen, smoothed; ``slower`` and
    ``faster`` are the sums. ``alarmed_s``: since when the alarm stands.
    """

    read_s: float | None = None
    log_ratio: float | None = None
    slower: float = 0.0
    faster: float = 0.0
    alarmed_s: float | None = None

    @property
    def ratio(self) -> float | None:
        """Seconds of steps seen over those foreseen, smoothed."""
        return None if self.log_ratio is None else math.exp(self.log_ratio)

    def as_of(self, now_s: float) -> DriftMemory:
        """The same, but after a clock that was set back (:mod:`policies.clock`)."""
        by_s = ahead_s(now_s, self.read_s, self.alarmed_s)
        return replace(self, read_s=back(self.read_s, by_s), alarmed_s=back(self.alarmed_s, by_s))

    def is_due(self, now_s: float, limits: DriftLimits) -> bool:
        return self.read_s is None or now_s - self.read_s >= limits.every_s


def watch(memory: DriftMemory, log_ratio: float, now_s: float, limits: DriftLimits) -> DriftMemory:
    """Take in one reading.

    The alarm rises when one of the sums reaches the threshold, and falls when both are back at 0:
    steps are as foreseen again, or nearly. Sums stop at twice the threshold, so that a drift that
    lasted for days is over as soon as one that lasted for minutes.
    """
    log_ratio = min(max(log_ratio, math.log(LEAST_RATIO)), math.log(MOST_RATIO))
    off, most = math.log1p(limits.tolerance), 2 * limits.threshold
    slower = min(max(0.0, memory.slower + log_ratio - off), most)
    faster = min(max(0.0, memory.faster - log_ratio - off), most)
    before = memory.log_ratio
    smooth = log_ratio if before is None else before + limits.alpha * (log_ratio - before)
    alarmed_s = memory.alarmed_s
    if max(slower, faster) >= limits.threshold:
        alarmed_s = now_s if alarmed_s is None else alarmed_s
    elif not slower and not faster:
        alarmed_s = None
    return replace(
        memory,
        read_s=now_s,
        log_ratio=smooth,
        slower=slower,
        faster=faster,
        alarmed_s=alarmed_s,
    )
