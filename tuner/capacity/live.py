"""The load that a running server carries within an SLA, found by driving it for a bounded time.

A probe is some seconds of the workload's traffic at one rate, each another draw. If the driver
itself was late, its probe is worthless and set aside. If a second one is late too, this machine
cannot send that rate, and lower rates are looked at. First the neighbourhood is bracketed. The
remaining time goes to rates around the point where a falling fit of P(SLA met) crosses the
verdict's least chance. Probes drawn anew give the interval.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from engine.spec.measurement import Measurement, Outcome
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.constraint import Metric
from policies.points import Estimate, OperatingPoint
from policies.sla import Sla
from policies.verdict import MIN_CHANCE, is_dependable, meets_in_run
from tuner.capacity.probe import Probe
from tuner.capacity.search import (
    CLIFF_LOAD,
    NUM_BOOTSTRAPS,
    Capacity,
    Cliff,
    binding_of,
    bracket,
    check_has_rate,
    crossing_of,
    limits_of,
    mean_attainment,
    reachable,
)
from tuner.spec.errors import TunerError
from tuner.workload.judged import check_judged
from tuner.workload.stretch import stretch
from tuner.workload.workload import Workload

# This many probes fill the time if each takes as long again to drain.
NUM_PROBES = 10
MOST_PROBES = 3 * NUM_PROBES
LEAST_PROBE_S = 0.5
# A p99 leaves one request in a hundred above it; a probe has this many times as many requests, so
# that late ones show.
LATE_ONES = 2.5
# The driver's p99 may be this late, or a share of the tightest bound on TTFT or E2E if that is
# less.
MOST_LAG_MS = 20.0
MOST_LAG_SHARE = 0.1
# Bracketing ends within this ratio of two rates: the fit does the rest.
LIVE_RATIO = 1.3
# Rates around the crossing that are probed in turn.
AROUND = (1.0, 0.9, 1.1, 0.95, 1.05, 0.85)
# Probes within this ratio of a rate speak for it.
BESIDE = 1.06

# Sends a workload's requests, prompts by the seed, until all have ended or it is told to stop.
Drive = Callable[[Workload, int, Callable[[], bool]], Measurement]
# Makes a point of a run, with its sampling intervals, under a seed.
Estimates = Callable[[Measurement, int], Mapping[str, Estimate]]


@dataclass(frozen=True, kw_only=True)
class LateProbe:
    """A probe that says nothing, because the driver itself was late."""

    factor: float
    num_requests: int
    lag_ms: float


@dataclass(frozen=True, kw_only=True)
class LiveCapacity:
    """What was found, and the probes that were set aside. ``undrivable`` is the factor from which
    this machine is too slow to send the load; None: it kept up. ``cut_rps`` are the requests per
    second that ended in the probe that was still running when the time was used; None: none was."""

    found: Capacity
    late: tuple[LateProbe, ...]
    undrivable: float | None
    seconds: float
    cut_rps: float | None = None


class _StopError(Exception):
    """No further probe: the time is used."""


@dataclass(kw_only=True)
class LiveSearch:
    """One search of ``workload``'s highest load within ``sla`` on what ``drive`` drives.

    ``seconds`` bound all of it: what still runs then is cut, and its probe does not count. No more
    than ``most_probes`` are made, however quickly they end. The first is at ``start``, the others
    ``stride`` times up or down until the capacity lies between two. ``lag_ms`` is how late the
    driver may be (None: as :func:`most_lag_ms` says); where clients are to be on the server's own
    cores, their lateness is a part of what is asked for, and no probe is set aside for it. Once
    ``should_stop`` says so it ends as if the time were used.

    Raises:
        TunerError: a workload without a rate, or too little time.
    """

    workload: Workload
    sla: Sla
    drive: Drive
    estimates: Estimates
    seconds: float
    most_probes: int = MOST_PROBES
    settings: Settings = field(default_factory=lambda: Settings(plan=ParallelPlan()))
    on_probe: Callable[[Probe | LateProbe], None] = lambda _: None
    start: float = 1.0
    stride: float = 2.0
    lag_ms: float | None = None
    should_stop: Callable[[], bool] = lambda: False
    _probes: list[Probe] = field(default_factory=list)
    _late: list[LateProbe] = field(default_factory=list)
    _undrivable: float | None = None
    _cut_rps: float | None = None
    _start_s: float = 0.0

    def __post_init__(self) -> None:
        check_has_rate(self.workload)
        check_judged(self.workload, self.sla)
        least, greatest = self._limits
        if self._probe_s < LEAST_PROBE_S or least > greatest:
            raise TunerError(
                f"{self.seconds:g} seconds are too few to probe {self.sla} by "
                f"{least_requests(self.sla)} requests and more; take longer"
            )

    def run(self) -> LiveCapacity:
        """Drive it until the time is used."""
        self._start_s = time.monotonic()
        try:
            bracket(
                self._passes, self._limits, start=self.start, ratio=LIVE_RATIO, stride=self.stride
            )
            nth = 0
            while self._is_crossed:
                least, greatest = self._limits
                around = _crossing(self._probes) * AROUND[nth % len(AROUND)]
                self._look(min(max(around, least), greatest))
                nth += 1
        except _StopError:
            pass
        return LiveCapacity(
            found=self._found(),
            late=tuple(self._late),
            undrivable=self._undrivable,
            seconds=time.monotonic() - self._start_s,
            cut_rps=self._cut_rps,
        )

    @property
    def _probe_s(self) -> float:
        """Seconds of traffic of a probe."""
        return self.seconds / (2 * NUM_PROBES)

    @property
    def _limits(self) -> tuple[float, float]:
        """The least factor at which enough requests come in a quarter of the time, and the
        greatest."""
        least, greatest = limits_of(self.workload)
        if (rate := self.workload.rate_rps) is not None and self.workload.closed is None:
            least = max(least, 4 * least_requests(self.sla) / (rate * self.seconds))
        return least, greatest

    @property
    def _is_crossed(self) -> bool:
        chances = [probe.chance for probe in self._probes]
        return bool(chances) and min(chances) < MIN_CHANCE <= max(chances)

    def _passes(self, factor: float) -> bool:
        probe = self._look(factor)
        return probe is not None and probe.is_dependable

    def _look(self, factor: float) -> Probe | None:
        """Probe once, and once more if the driver is late. None: it was late twice."""
        factor = reachable(self.workload, factor)
        for _ in range(2):
            if self._is_over or self._num_probes >= self.most_probes:
                raise _StopError
            result = self._probe(factor)
            self.on_probe(result)
            if isinstance(result, Probe):
                self._probes.append(result)
                return result
            self._late.append(result)
        self._undrivable = min(factor, self._undrivable or math.inf)
        return None

    def _probe(self, factor: float) -> Probe | LateProbe:
        draw = self._num_probes
        load = traffic(self.workload, factor, draw, seconds=self._probe_s, sla=self.sla)
        begun_s = time.monotonic()
        run = self.drive(load, draw, lambda: self._is_over)
        if any(timing.outcome is Outcome.CUT for timing in run.timings):
            self._cut_rps = len(run.completed) / (time.monotonic() - begun_s)
            raise _StopError
        lag_ms = run.driver_lag_ms.p99 or 0.0
        if lag_ms > (most_lag_ms(self.sla) if self.lag_ms is None else self.lag_ms):
            return LateProbe(factor=factor, num_requests=len(run.timings), lag_ms=lag_ms)
        point = OperatingPoint(
            settings=self.settings, fidelity=run.fidelity, metrics=self.estimates(run, draw)
        )
        is_met = meets_in_run(point, self.sla)
        return Probe(
            factor=factor,
            draw=draw,
            num_requests=len(run.timings),
            point=point,
            is_dependable=is_dependable(point, self.sla),
            chance=point.probability(self.sla) if is_met else 0.0,
        )

    @property
    def _num_probes(self) -> int:
        return len(self._probes) + len(self._late)

    @property
    def _is_over(self) -> bool:
        return time.monotonic() - self._start_s > self.seconds or self.should_stop()

    def _found(self) -> Capacity:
        probes = tuple(self._probes)
        met = [p.factor for p in probes if p.is_dependable]
        missed = [p for p in probes if not p.is_dependable]
        if not met or not missed:
            factor = max(met, default=None)
            return Capacity(
                factor=factor,
                low=factor,
                high=None,
                is_at_least=factor is not None,
                binding=binding_of(missed[-1:], self.sla),
                cliff=None,
                probes=probes,
            )
        ends = (_crossing(probes), *_interval(probes))
        # Of clients as many as are carried: the next one more is not.
        factor, low, high = (reachable(self.workload, end) for end in ends)
        above = [p for p in missed if p.factor >= factor] or missed
        return Capacity(
            factor=factor,
            low=min(low, factor),
            high=max(high, factor),
            is_at_least=False,
            binding=binding_of(above, self.sla),
            cliff=_cliff(probes, factor),
            probes=probes,
        )


def least_requests(sla: Sla) -> int:
    """Requests that a probe needs to show the SLA's highest percentile, as in 50 for a p95."""
    percents = [c.percentile.percent or 0.0 for c in sla.per_run if c.percentile is not None]
    return math.ceil(LATE_ONES / (1 - max(percents, default=90.0) / 100) - 1e-9)


def most_lag_ms(sla: Sla) -> float:
    """How late the driver may be, at its 99th percentile."""
    bounds = [c.bound for c in sla.constraints if c.metric in (Metric.TTFT_MS, Metric.E2E_MS)]
    return min([MOST_LAG_MS, *(MOST_LAG_SHARE * bound for bound in bounds)])


def traffic(workload: Workload, factor: float, draw: int, *, seconds: float, sla: Sla) -> Workload:
    """``seconds`` of the workload at ``factor`` times its load, or longer until there are enough
    requests; another part of it in each draw, the same part at every rate."""
    if (closed := workload.closed) is not None:
        load = stretch(workload, factor, seed=draw)
        clients = load.closed.concurrency if load.closed is not None else 1
        return replace(load, closed=replace(closed, concurrency=clients, limit_s=seconds))
    rate = workload.rate_rps or 0.0
    count = max(least_requests(sla), math.ceil(rate * factor * seconds))
    load = stretch(workload, factor, seed=draw, least=count)
    part = np.random.default_rng([draw, 0x11FE]).random()
    first = math.floor(part * (len(load) - count + 1))
    chosen = load.arrivals[first : first + count]
    begin_s = chosen[0].arrival_s
    return replace(
        load, arrivals=tuple(replace(a, arrival_s=a.arrival_s - begin_s) for a in chosen)
    )


def _crossing(probes: Sequence[Probe]) -> float:
    """Probes at one rate count as one, by their mean."""
    factors = np.array(sorted({p.factor for p in probes}))
    chances = np.array([np.mean([p.chance for p in probes if p.factor == f]) for f in factors])
    return crossing_of(factors, chances)


def _interval(probes: Sequence[Probe]) -> tuple[float, float]:
    rng = np.random.default_rng(0xB007)
    drawn = [rng.integers(len(probes), size=len(probes)) for _ in range(NUM_BOOTSTRAPS)]
    found = [_crossing([probes[i] for i in picked]) for picked in drawn]
    low, high = np.percentile(found, (5, 95))
    return float(low), float(high)


def _cliff(probes: Sequence[Probe], factor: float) -> Cliff | None:
    """None if nothing was probed at the capacity, or a tenth above it."""

    def beside(wanted: float) -> list[Probe]:
        return [p for p in probes if wanted / BESIDE <= p.factor <= wanted * BESIDE]

    at, above = beside(factor), beside(factor * CLIFF_LOAD)
    if not at or not above:
        return None
    return Cliff(attainment=mean_attainment(at), attainment_above=mean_attainment(above))
