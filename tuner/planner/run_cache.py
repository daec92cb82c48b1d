"""Simulated runs, kept: another SLA on the same load only judges them again.

A question that is asked again with another bound needs the same runs, and so do settings whose
caps never bind: a run in which no step was full would have gone the same way with any caps that are
wider than its steps. Answers are those of fresh runs, down to when a watch would have stopped them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from engine.modes.chooser import ModeChooser
from engine.spec.measurement import Outcome, RequestTiming
from engine.spec.modes import TABLE
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from policies.constraint import Constraint, Metric
from policies.report import flat_metrics
from policies.sla import Sla
from tuner.described.node import Node
from tuner.simulation.simulate import OnProgress, SimulationResult
from tuner.simulation.timeline import peak_active
from tuner.step_model.timer import StepScale
from tuner.workload.workload import FloatArray, Workload

# An ended request keeps its row for a step or two.
LINGERING = 2


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a whole run says under any SLA, or only under ``sla`` if that is set.

    ``own_ms`` are TTFT, TPOT and E2E of each request, f8[requests], NaN where it has none.
    ``step_tokens`` are the sizes of its steps, ascending; ``most_active`` the most requests that
    had come and not ended at a time.
    """

    flat: Mapping[str, float]
    own_ms: Mapping[Metric, FloatArray]
    window_s: float
    step_tokens: tuple[int, ...]
    most_active: int
    sla: Sla | None = None

    @classmethod
    def of(cls, result: SimulationResult, sla: Sla) -> RunFacts:
        """The facts of a run that was made for ``sla``."""
        measurement = result.measurement
        timings = measurement.timings
        own_ms = {
            Metric.TTFT_MS: _values(t.ttft_ms for t in timings),
            Metric.TPOT_MS: _values(t.tpot_ms for t in timings),
            Metric.E2E_MS: _values(t.e2e_ms for t in timings),
        }
        # What failed requests and single gaps count as depends on the SLA.
        is_free = all(map(_is_answered, timings)) and _is_known(sla)
        return cls(
            flat=flat_metrics(measurement, None if is_free else sla),
            own_ms=own_ms,
            window_s=measurement.window_s,
            step_tokens=result.step_tokens,
            most_active=peak_active(measurement),
            sla=None if is_free else sla,
        )

    def find_flat(self, sla: Sla) -> dict[str, float] | None:
        """``policies.report.flat_metrics`` of the run under ``sla``; None where only a new run
        can tell."""
        if self.sla is not None:
            return dict(self.flat) if self.sla == sla else None
        if not _is_known(sla):
            return None
        is_met = np.ones(len(self.own_ms[Metric.E2E_MS]), dtype=np.bool_)
        for constraint in sla.per_request:
            is_met &= ~self._is_over(constraint)
        found = {**self.flat, "attainment": int(is_met.sum()) / len(is_met)}
        if self.window_s > 0:
            found["goodput_rps"] = int(is_met.sum()) / self.window_s
        for constraint in sla.per_run:
            if constraint.metric in self.own_ms and constraint.percentile is None:
                own = self.own_ms[constraint.metric]
                if not np.isnan(own).all():
                    found[constraint.key] = float(np.nanmax(own))
        return found

    def num_over(self, constraint: Constraint) -> int:
        """Requests over a bound on TTFT, TPOT or E2E; those without a value are not counted."""
        return int(self._is_over(constraint).sum())

    def is_as_under(
        self, done: Settings, asked: Settings, node: Node, longest: int, *, num_kept: int = 0
    ) -> bool:
        """Whether ``asked`` would have run as ``done`` did: no caps of either bind, nor does KV
        memory for requests of up to ``longest`` tokens and for ``num_kept`` blocks of a prefix
        cache, and each step is in the same mode."""
        if not all(self._never_binds(settings.caps) for settings in (done, asked)):
            return False
        alike = replace(
            done,
            caps=asked.caps,
            threshold_tokens=asked.threshold_tokens,
            rung_thresholds=asked.rung_thresholds,
        )
        if alike != asked or asked.pin == TABLE:
            return False
        first, second = (ModeChooser.of(settings) for settings in (done, asked))
        if done.plan.shift and any(
            first.choose(tokens, 0) != second.choose(tokens, 0) for tokens in self.step_tokens
        ):
            return False
        needed = num_kept + LINGERING * self.most_active * -(-longest // node.block_size)
        return all(node.num_kv_blocks(s.plan, s.caps) >= needed for s in (done, asked))

    def _is_over(self, constraint: Constraint) -> npt.NDArray[np.bool_]:
        return np.asarray(self.own_ms[constraint.metric] > constraint.bound)

    def _never_binds(self, caps: Caps) -> bool:
        return (
            caps.max_step_ms is None
            and caps.max_queue is None
            and self.step_tokens[-1] < caps.max_num_batched_tokens
            and LINGERING * self.most_active < caps.max_num_seqs
        )


@dataclass(frozen=True, kw_only=True)
class CachedRun:
    """What a run reported on its way, and its facts; None: it was stopped before its end."""

    calls: tuple[tuple[float, int, int], ...]
    facts: RunFacts | None

    def replay(self, on_progress: OnProgress) -> None:
        """Tell what the run told; raises where ``on_progress`` does."""
        for call in self.calls:
            on_progress(*call)


@dataclass(frozen=True, kw_only=True)
class RunKey:
    """A run of one load: of its draw number ``draw``, or of the ``part`` busiest requests of it."""

    scale: StepScale = field(default_factory=StepScale)
    draw: int = 0
    part: int | None = None


@dataclass(frozen=True)
class RunCache:
    """The runs of one load on one kind of node under one seed, and the load's draws. ``alone`` has
    the metrics of single requests under a plan, for the constraints with these keys."""

    runs: dict[ParallelPlan, dict[RunKey, dict[Settings, CachedRun]]] = field(default_factory=dict)
    alone: dict[tuple[ParallelPlan, tuple[str, ...]], dict[str, float]] = field(
        default_factory=dict
    )
    draws: dict[int, Workload] = field(default_factory=dict)

    def of(self, plan: ParallelPlan) -> RunCache:
        """A view of one plan's runs: runs added there are added here, too."""
        alone = {key: found for key, found in self.alone.items() if key[0] == plan}
        return RunCache({plan: self.runs.setdefault(plan, {})}, alone)

    def find(self, settings: Settings, key: RunKey, node: Node, load: Workload) -> CachedRun | None:
        """The run of ``settings``, or one that went the same way."""
        runs = self.runs.get(settings.plan, {}).get(key, {})
        own = runs.get(settings)
        if own is not None and own.facts is not None:
            return own
        whole = [(done, run, run.facts) for done, run in runs.items() if run.facts is not None]
        if whole:
            tokens = load.input_tokens + load.output_tokens
            longest, num_kept = int(tokens.max()), 0
            if node.finds_beginnings(load):  # those of requests that ended are kept, too
                num_kept = int((tokens // node.block_size).sum())
            for done, run, facts in whole:
                if facts.is_as_under(done, settings, node, longest, num_kept=num_kept):
                    return run
        return own

    def add(self, settings: Settings, key: RunKey, run: CachedRun) -> None:
        """Keep a run."""
        self.runs.setdefault(settings.plan, {}).setdefault(key, {})[settings] = run

    def add_all(self, other: RunCache) -> None:
        """Keep the runs of another process."""
        self.alone.update(other.alone)
        for by_key in other.runs.values():
            for key, runs in by_key.items():
                for settings, run in list(runs.items()):
                    self.add(settings, key, run)


def _values(found: Iterable[float | None]) -> FloatArray:
    return np.array([np.nan if value is None else value for value in found], dtype=np.float64)


def _is_answered(timing: RequestTiming) -> bool:
    is_there = timing.outcome is Outcome.COMPLETED and bool(timing.token_s)
    return is_there and timing.token_s[0] > timing.scheduled_s


def _is_known(sla: Sla) -> bool:
    """Whether no request is held to a bound on its own gaps, which are not kept."""
    return all(constraint.metric is not Metric.ITL_MS for constraint in sla.per_request)
