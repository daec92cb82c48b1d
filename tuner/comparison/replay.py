"""What other settings would have done: both simulated on the same draws of the same load.

Differences are paired by draw: a draw with a burst is hard for both. How far step times may be off
is paired too, since a model that is a tenth slow is so for both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import Any

from engine.spec.measurement import Measurement
from engine.spec.settings import Settings
from policies.paired import Change, paired_change, paired_difference
from policies.points import INTERVAL_Z
from policies.report import finite, flat_metrics
from policies.sla import Sla
from tuner.comparison.metrics import metric_keys
from tuner.workload.workload import Workload

# Simulates settings under a load with all step times multiplied by a number.
RunAt = Callable[[Settings, Workload, float], Measurement]
ATTAINMENT = "attainment"


@dataclass(frozen=True, kw_only=True)
class AttainmentChange:
    """Means over draws, and by how much the one lies above the other, with its 90 % interval.

    With one draw nothing is known of the interval: it is all that a share can change by.
    """

    before: float
    after: float
    change: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class Effect:
    """Means of one metric over the draws, and by which share it changes. ``change`` None: with
    fewer than two draws, or numbers of which no ratio can be taken."""

    metric: str
    is_less_better: bool
    current: float
    candidate: float
    change: Change | None

    def to_json(self) -> dict[str, Any]:
        change = None if self.change is None else self.change.to_json()
        numbers = {"current": finite(self.current), "candidate": finite(self.candidate)}
        return {**vars(self), **numbers, "change": change}


@dataclass(frozen=True, kw_only=True)
class Replay:
    """How ``candidate`` would have done instead of ``current``.

    ``attainment`` is the difference of the shares of requests that met the SLA, with its 90 %
    interval; None without an SLA. ``effects``: the metrics that the SLA bounds, and the usual ones.
    """

    current: Settings
    candidate: Settings
    num_draws: int
    num_requests: int
    attainment: AttainmentChange | None
    effects: tuple[Effect, ...]

    def is_worse(self) -> bool:
        """Whether attainment falls, with all of the interval."""
        return self.attainment is not None and self.attainment.high < 0

    def is_no_worse(self) -> bool:
        """Whether attainment does not fall, with all of the interval."""
        return self.attainment is not None and self.attainment.low >= 0

    def to_json(self) -> dict[str, Any]:
        attainment = self.attainment
        return {
            "current": self.current.to_json(),
            "candidate": self.candidate.to_json(),
            "num_draws": self.num_draws,
            "num_requests": self.num_requests,
            "attainment": None if attainment is None else attainment.to_json(),
            "is_worse": self.is_worse(),
            "is_no_worse": self.is_no_worse(),
            "effects": [effect.to_json() for effect in self.effects],
        }


def replay(
    run_at: RunAt,
    draws: Sequence[Workload],
    *,
    current: Settings,
    candidate: Settings,
    sla: Sla | None,
    interval: float = 0.0,
) -> Replay:
    """Simulate both on every draw and compare.

    ``interval`` is the 90 % half width of log(true / simulated) step times: draw i of n is run with
    the step times of its (i + 1/2)/n quantile.

    Raises:
        ValueError: no draws.
        EngineError, TunerError: whatever ``run_at`` raises for settings that cannot run.
    """
    if not draws:
        raise ValueError("nothing to replay: give at least one draw of the load")
    scales = _step_scales(len(draws), interval)
    before, after = (
        [
            flat_metrics(run_at(settings, draw, scale), sla)
            for draw, scale in zip(draws, scales, strict=True)
        ]
        for settings in (current, candidate)
    )
    keys = {key: less for key, less in metric_keys(sla).items() if key != ATTAINMENT}
    return Replay(
        current=current,
        candidate=candidate,
        num_draws=len(draws),
        num_requests=sum(map(len, draws)),
        attainment=_attainment(before, after) if sla is not None else None,
        effects=tuple(
            _effect(key, less, before, after)
            for key, less in keys.items()
            if all(key in flat for flat in (*before, *after))
        ),
    )


def _step_scales(count: int, interval: float) -> list[float]:
    quantiles = [NormalDist().inv_cdf((nth + 0.5) / count) for nth in range(count)]
    return [math.exp(q / INTERVAL_Z * interval) for q in quantiles]


def _attainment(
    before: Sequence[dict[str, float]], after: Sequence[dict[str, float]]
) -> AttainmentChange:
    """A draw in which nothing was judged counts as met by both."""
    old = [flat.get(ATTAINMENT, 1.0) for flat in before]
    new = [flat.get(ATTAINMENT, 1.0) for flat in after]
    found = paired_difference(new, old)
    return AttainmentChange(
        before=fmean(old),
        after=fmean(new),
        change=fmean(new) - fmean(old),
        low=-1.0 if found is None else max(found.low, -1.0),
        high=1.0 if found is None else min(found.high, 1.0),
    )


def _effect(
    key: str, less: bool, before: Sequence[dict[str, float]], after: Sequence[dict[str, float]]
) -> Effect:
    old, new = [flat[key] for flat in before], [flat[key] for flat in after]
    return Effect(
        metric=key,
        is_less_better=less,
        current=fmean(old),
        candidate=fmean(new),
        change=paired_change(new, old),
    )
