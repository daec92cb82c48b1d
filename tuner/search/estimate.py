"""What settings would do by arithmetic alone: step times, and a run in outline.

It schedules no single steps but stretches of equal ones (:mod:`tuner.search.outline`). That is good
enough to say which combinations are worth a simulation, and costs a few milliseconds, or nothing if
a cap that was tried never bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from engine.executors.protocol import StepTimer
from engine.spec.measurement import Fidelity
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from policies.points import Estimate, OperatingPoint
from policies.sla import Sla
from tuner.search.outline import Outline, StepTimes, outline
from tuner.search.surrogate import Load

SHARES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "max": 100.0}
# A number of tokens or rows that never binds.
ENDLESS = 1 << 30


@dataclass(kw_only=True)
class Estimator:
    """Estimates under one load. Step times and outlines are kept: settings whose caps do not bind
    share those of others that differ only in these caps."""

    load: Load
    timer: Callable[[ParallelPlan], StepTimer]
    sla: Sla
    _times: dict[Settings, StepTimes] = field(default_factory=dict)
    _outlines: dict[Settings, list[tuple[Settings, Outline]]] = field(default_factory=dict)

    def estimate(self, settings: Settings) -> OperatingPoint:
        """Every latency that the SLA bounds, and the throughput."""
        found = self._outline(settings)
        metrics = {"throughput_tokens_per_s": Estimate.exact(found.throughput_tokens_per_s)}
        for constraint in self.sla.constraints:
            value = _value(found, constraint.key)
            if value is not None:
                metrics[constraint.key] = Estimate.exact(1e3 * max(value, 1e-9))
        return OperatingPoint(settings=settings, fidelity=Fidelity.PREDICTED, metrics=metrics)

    def _outline(self, settings: Settings) -> Outline:
        known = self._outlines.setdefault(_without(settings), [])
        for other, found in known:
            if _is_alike(settings, other, found):
                return found
        found = outline(settings, self.load, self._times_of(settings))
        known.append((settings, found))
        return found

    def _times_of(self, settings: Settings) -> StepTimes:
        key = replace(_without(settings), caps=Caps())
        if key not in self._times:
            timer = self.timer(settings.plan)
            self._times[key] = StepTimes(settings=settings, load=self.load, timer=timer)
        return self._times[key]


def _without(settings: Settings) -> Settings:
    """``settings`` with caps on rows and tokens that never bind."""
    caps = replace(settings.caps, max_num_seqs=ENDLESS, max_num_batched_tokens=ENDLESS)
    return replace(settings, caps=caps)


def _is_alike(settings: Settings, other: Settings, found: Outline) -> bool:
    """Whether the caps of ``settings`` would have changed nothing in the outline of ``other``."""
    caps, known = settings.caps, other.caps
    has_rows = caps.max_num_seqs == known.max_num_seqs or (
        not found.waits and caps.max_num_seqs >= found.most_active
    )
    has_tokens = caps.max_num_batched_tokens == known.max_num_batched_tokens or (
        not found.is_cut and caps.max_num_batched_tokens >= found.most_tokens
    )
    return has_rows and has_tokens


def _value(found: Outline, key: str) -> float | None:
    """Seconds of a latency by the SLA's name for it; None where it is none."""
    which, _, name = key.partition("_")
    seconds = {"ttft_ms": found.ttft_s, "tpot_ms": found.tpot_s, "e2e_ms": found.e2e_s}.get(name)
    if name == "itl_ms":
        seconds = found.gaps_s
    if seconds is None or not (which in SHARES or which == "mean"):
        return None
    weights = found.gap_counts if name == "itl_ms" else np.ones(len(seconds))
    if not len(seconds):
        return 0.0
    if which == "mean":
        return float(np.average(seconds, weights=weights))
    if name != "itl_ms":
        return float(np.percentile(seconds, SHARES[which]))
    order = np.argsort(seconds)
    reached = np.cumsum(weights[order]) / weights.sum()
    place = int(np.searchsorted(reached, SHARES[which] / 100))
    return float(seconds[order][min(len(order) - 1, place)])
