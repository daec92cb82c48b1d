"""Whether live steps still take as long as the cost model says: a CUSUM on their log ratio.

Each sample is a predicted and a measured time. Its residual is ``r = log(measured / predicted)``
and two sums grow with what lies beyond the ``allowance`` (what the model may be off by without
having drifted), in units of the ``noise`` of one sample, by at most 1 a sample::

    slower <- max(0, slower + clip((r - allowance) / noise, -1, 1))
    faster <- max(0, faster + clip((-r - allowance) / noise, -1, 1))

The alarm goes off when a sum passes ``patience``: never before that many samples, so a hiccup of a
few steps is no drift, whatever its size (Page 1954; the clip is Huber's). It stays on until it is
cleared, by a refit. The size is the median residual since its sum last left 0; where steps have
gone back by themselves since the alarm, that shows as a size near 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import median
from typing import Any

import msgspec

from policies.points import INTERVAL_Z
from tuner.spec.errors import TunerError
from tuner.step_model.model import ErrorReport

# For single steps of a live engine; whoever feeds sums over many steps needs fewer.
PATIENCE = 30
# The size is the median of at most this many samples, the latest.
KEPT_RESIDUALS = 64
# Floors, because a fit may come out exact on what it was judged by.
LEAST_NOISE = 0.02
LEAST_ALLOWANCE = 0.03


class Direction(StrEnum):
    """Which way steps have gone from what was predicted."""

    SLOWER = "slower"
    FASTER = "faster"


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Steps take ``1 + share`` times as long as predicted (-0.2: a fifth less), by the median of
    the ``num_samples`` latest since it began."""

    direction: Direction
    share: float
    num_samples: int

    def __str__(self) -> str:
        return (
            f"steps are {self.direction} than predicted: {self.share:+.0%} over the last "
            f"{self.num_samples} samples"
        )


@dataclass(frozen=True, kw_only=True)
class DriftAlarm:
    """What is known after some samples. A value: :meth:`after` gives the next one.

    ``allowance`` and ``noise`` are log ratios above 0, ``patience`` counts samples.

    Raises:
        TunerError: one of them is not above 0.
    """

    allowance: float
    noise: float
    patience: int = PATIENCE
    slower: float = 0.0
    faster: float = 0.0
    slower_residuals: tuple[float, ...] = ()
    faster_residuals: tuple[float, ...] = ()
    raised: Direction | None = None

    def __post_init__(self) -> None:
        for name in ("allowance", "noise", "patience"):
            if not 0 < getattr(self, name) < math.inf:
                raise TunerError(f"{name}={getattr(self, name)}: must be above 0")

    @classmethod
    def of(cls, error: ErrorReport) -> DriftAlarm:
        """For a step model with this error: its plans may be off as far as they were when left
        out, and single steps as far as theirs were."""
        return cls(
            allowance=max(LEAST_ALLOWANCE, error.plan_interval),
            noise=max(LEAST_NOISE, error.step_interval / INTERVAL_Z),
        )

    def after(self, predicted_s: float, measured_s: float) -> DriftAlarm:
        """One sample later: a step, or a sum over steps, of ``predicted_s`` seconds that took
        ``measured_s``.

        Raises:
            TunerError: a time that is not above 0. Missing data is no sample.
        """
        for name, seconds in (("predicted_s", predicted_s), ("measured_s", measured_s)):
            if not 0 < seconds < math.inf:
                raise TunerError(f"{name}={seconds}: a time above 0 is needed")
        residual = math.log(measured_s / predicted_s)
        slower = max(0.0, self.slower + self._step(residual))
        faster = max(0.0, self.faster + self._step(-residual))
        return replace(
            self,
            slower=slower,
            faster=faster,
            slower_residuals=self._kept(self.slower_residuals, residual, slower),
            faster_residuals=self._kept(self.faster_residuals, residual, faster),
            raised=self.raised or self._raised_by(slower, faster),
        )

    @property
    def drift(self) -> Drift | None:
        """The alarm; None while all is as predicted."""
        if self.raised is None:
            return None
        is_slower = self.raised is Direction.SLOWER
        residuals = self.slower_residuals if is_slower else self.faster_residuals
        share = math.expm1(median(residuals))
        return Drift(direction=self.raised, share=share, num_samples=len(residuals))

    def cleared(self) -> DriftAlarm:
        """The same watch from the start, as after a refit."""
        return DriftAlarm(allowance=self.allowance, noise=self.noise, patience=self.patience)

    def to_json(self) -> dict[str, Any]:
        """All of it, so that a watch outlives its process."""
        document: dict[str, Any] = msgspec.to_builtins(self)
        return document

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> DriftAlarm:
        """Read it back. Raises TunerError for a part that is missing or of the wrong kind."""
        try:
            return msgspec.convert(raw, cls)
        except msgspec.ValidationError as error:
            raise TunerError(f"drift alarm: {error}") from error

    def _step(self, residual: float) -> float:
        return max(-1.0, min(1.0, (residual - self.allowance) / self.noise))

    def _raised_by(self, slower: float, faster: float) -> Direction | None:
        if slower >= self.patience:
            return Direction.SLOWER
        return Direction.FASTER if faster >= self.patience else None

    def _kept(self, residuals: tuple[float, ...], latest: float, total: float) -> tuple[float, ...]:
        """Residuals since the sum last left 0; once the alarm is on, the latest."""
        if total == 0 and self.raised is None:
            return ()
        return (*residuals[1 - KEPT_RESIDUALS :], latest)
