"""The service's own Prometheus metrics (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from api.documents.live_window import LiveWindow
from api.schemas.serving import Acknowledge
from policies.drift import DriftMemory
from policies.replicas import desired_replicas
from store import Database
from store.models import EngineRow
from store.models.base import Json, utc_now

Word = TypeVar("Word", bound=str)
Kept = TypeVar("Kept")
ROLLBACK_REASONS = ("operator", "refused", "rollout", "undecided")
LOOPS = ("controller", "restarter", "rollouts", "watcher")


class ServiceMetrics:
    """Metrics of one control plane.

    Counters are its own: over several control planes of one database they add up. Gauges come
    from the database, and every control plane shows the same. What was seen of an engine is left
    out when it is older than ``fresh_s``, and when the engine has been silent for so long.
    """

    def __init__(self, *, fresh_s: float) -> None:
        self._fresh_s = fresh_s
        self.registry = CollectorRegistry()
        self.decisions = Counter(
            "gearshift_decisions",
            "Decisions of the controller",
            ["action", "reason"],
            registry=self.registry,
        )
        self.reconfig_s = Histogram(
            "gearshift_reconfig_duration_seconds",
            "Seconds from the start of a change on the engine until it was in force",
            ["class"],
            registry=self.registry,
            buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 120),
        )
        self.lost_requests = Counter(
            "gearshift_reconfig_lost_requests",
            "Requests that ended in an error because of a change",
            registry=self.registry,
        )
        self.rollbacks = Counter(
            "gearshift_rollback",
            "Policies that were rolled back",
            ["reason"],
            registry=self.registry,
        )
        self.control_failures = Counter(
            "gearshift_control_failures",
            "Turns of an engine, rollout or server that failed, and rounds that failed as a whole",
            ["loop"],
            registry=self.registry,
        )
        # From zero, so that the first one counts as an increase.
        for reason in ROLLBACK_REASONS:
            self.rollbacks.labels(reason=reason)
        for loop in LOOPS:
            self.control_failures.labels(loop=loop)

    def count_acknowledgement(self, receipt: Acknowledge) -> None:
        """Count what an engine did about a policy version."""
        self.lost_requests.inc(receipt.lost_requests)
        if receipt.result == "refused":
            self.rollbacks.labels(reason="refused").inc()
        elif receipt.changes and receipt.seconds is not None:
            worst = max(receipt.changes.values(), key=lambda kind: kind.rank)
            self.reconfig_s.labels(worst.value).observe(receipt.seconds)

    def render(self, database: Database) -> bytes:
        """The exposition text: what this process counted, and what the database says now."""
        shared = CollectorRegistry()
        shared.register(_SharedState(database, self._fresh_s))
        return generate_latest(self.registry) + generate_latest(shared)


class _SharedState(Collector):
    """Gauges read from the database, so that every control plane over it says the same."""

    def __init__(self, database: Database, fresh_s: float) -> None:
        self._database = database
        self._fresh_s = fresh_s

    def collect(self) -> Iterator[Metric]:
        since = utc_now() - timedelta(seconds=self._fresh_s)
        with self._database.read() as uow:
            jobs, trials = uow.jobs.count_by_state(), uow.trials.count_by_state()
            rollouts = uow.rollouts.count_by_state()
            alive = uow.engines.list_alive(since=since)
            engines = [_Engine.of(row, fresh_since_s=since.timestamp()) for row in alive]
        yield _by_state("gearshift_jobs", "Tuning jobs by state", jobs)
        yield _by_state("gearshift_trials_total", "Trials by state", trials)
        yield _by_state("gearshift_rollouts", "Rollouts by state", rollouts)
        yield from _windows(engines)
        yield from _drift(engines)
        yield _desired_replicas(engines)


@dataclass(frozen=True, kw_only=True)
class _Engine:
    """A live engine, and the window the controller saw last, unless that is too old."""

    name: str
    model_name: str
    window: LiveWindow | None
    drift: DriftMemory

    @classmethod
    def of(cls, row: EngineRow, *, fresh_since_s: float) -> _Engine:
        window = _read(LiveWindow, row.live_window)
        if window is not None and window.seen_at_s < fresh_since_s:
            window = None
        return cls(
            name=row.name,
            model_name=row.model_name,
            window=window,
            drift=_read(DriftMemory, row.drift_memory) or DriftMemory(),
        )


def _read(kind: type[Kept], document: Json | None) -> Kept | None:
    """What a row keeps; None where there is nothing, or what only another version reads: of one
    engine nothing is shown then, and of all others what there is."""
    try:
        return None if document is None else kind(**document)
    except TypeError:
        return None


def _by_state(name: str, text: str, counts: Mapping[Word, int]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=("state",))
    for state, count in counts.items():
        family.add_metric((str(state),), count)
    return family


def _windows(engines: Sequence[_Engine]) -> Iterator[Metric]:
    """What was observed and predicted in the last control window of each engine."""
    latency = ("engine", "metric", "percentile")
    attainment = GaugeMetricFamily(
        "gearshift_slo_attainment_ratio",
        "Requests that met their SLA, of those judged in the last control window",
        labels=("engine",),
    )
    observed = GaugeMetricFamily(
        "gearshift_observed_seconds", "Observed latency in the last control window", labels=latency
    )
    predicted = GaugeMetricFamily(
        "gearshift_predicted_seconds",
        "Latency the applied recommendation predicts",
        labels=latency,
    )
    error = GaugeMetricFamily(
        "gearshift_prediction_error_ratio", "(observed - predicted) / predicted", labels=latency
    )
    for engine in engines:
        window = engine.window
        if window is None:
            continue
        if window.attainment is not None:
            attainment.add_metric((engine.name,), window.attainment)
        for name, value_ms in window.observed_ms.items():
            observed.add_metric(_latency_labels(engine.name, name), value_ms / 1e3)
        for name, value_ms in window.predicted_ms.items():
            labels = _latency_labels(engine.name, name)
            predicted.add_metric(labels, value_ms / 1e3)
            if (seen_ms := window.observed_ms.get(name)) is not None:
                error.add_metric(labels, (seen_ms - value_ms) / value_ms)
    yield from (attainment, observed, predicted, error)


def _drift(engines: Sequence[_Engine]) -> Iterator[Metric]:
    """How far steps are from what the recommendation in force foresees."""
    ratio = GaugeMetricFamily(
        "gearshift_step_time_ratio",
        "Seconds of steps seen over those the applied recommendation foresees, smoothed",
        labels=("engine",),
    )
    alarm = GaugeMetricFamily(
        "gearshift_drift_alarm", "1 while they stay off by more than a tenth", labels=("engine",)
    )
    for engine in engines:
        if engine.drift.ratio is not None:
            ratio.add_metric((engine.name,), engine.drift.ratio)
            alarm.add_metric((engine.name,), float(engine.drift.alarmed_s is not None))
    yield from (ratio, alarm)


def _latency_labels(engine: str, name: str) -> tuple[str, str, str]:
    """The labels of ``p95_ttft_ms``."""
    percentile, _, metric = name.partition("_")
    return (engine, metric.removesuffix("_ms"), percentile)


def _desired_replicas(engines: Sequence[_Engine]) -> Metric:
    """Engines of one model share its load; where one is not known, nothing is said."""
    family = GaugeMetricFamily(
        "gearshift_desired_replicas",
        "Engines like this one that the load of all live engines of the model needs",
        labels=("engine", "model_name"),
    )
    ratios: dict[str, list[float | None]] = {}
    for engine in engines:
        ratio = None if engine.window is None else engine.window.load_ratio
        ratios.setdefault(engine.model_name, []).append(ratio)
    wanted = {model_name: desired_replicas(found) for model_name, found in ratios.items()}
    for engine in engines:
        if (count := wanted[engine.model_name]) is not None:
            family.add_metric((engine.name, engine.model_name), count)
    return family
