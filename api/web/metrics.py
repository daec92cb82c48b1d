"""The service's own Prometheus metrics (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from api.schemas.serving import Acknowledge
from store import Database
from store.models import JobState


class ServiceMetrics:
    """Metrics of one application, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.attainment = Gauge(
            "gearshift_slo_attainment_ratio",
            "Requests that met their SLA, of those judged in the last control window",
            ["engine"],
            registry=self.registry,
        )
        self.observed_s = Gauge(
            "gearshift_observed_seconds",
            "Observed latency in the last control window",
            ["engine", "metric", "percentile"],
            registry=self.registry,
        )
        self.predicted_s = Gauge(
            "gearshift_predicted_seconds",
            "Latency the applied recommendation predicts",
            ["engine", "metric", "percentile"],
            registry=self.registry,
        )
        self.prediction_error = Gauge(
            "gearshift_prediction_error_ratio",
            "(observed - predicted) / predicted",
            ["engine", "metric", "percentile"],
            registry=self.registry,
        )
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
        self._jobs = Gauge(
            "gearshift_jobs", "Tuning jobs by state", ["state"], registry=self.registry
        )
        self._trials = Gauge(
            "gearshift_trials_total", "Trials by state", ["state"], registry=self.registry
        )

    def count_acknowledgement(self, receipt: Acknowledge) -> None:
        """Count what an engine did about a policy version."""
        self.lost_requests.inc(receipt.lost_requests)
        if receipt.result == "refused":
            self.rollbacks.labels(reason="refused").inc()
        elif receipt.changes and receipt.seconds is not None:
            worst = max(receipt.changes.values(), key=lambda kind: kind.rank)
            self.reconfig_s.labels(worst.value).observe(receipt.seconds)

    def set_predicted(
        self, engine: str, predicted: Mapping[str, Any], observed: Mapping[str, float]
    ) -> None:
        """Show what the applied recommendation predicts, and how far the observed is from it."""
        for metric, values in predicted.items():
            if not metric.endswith("_ms") or not isinstance(values, Mapping):
                continue
            for percentile, value in values.items():
                if not value:
                    continue
                labels = (engine, metric.removesuffix("_ms"), percentile)
                self.predicted_s.labels(*labels).set(value / 1e3)
                if (seen := observed.get(f"{percentile}_{metric}")) is not None:
                    self.prediction_error.labels(*labels).set((seen - value) / value)

    def set_observed(self, engine: str, metrics: Mapping[str, float]) -> None:
        """Show the latencies of a control window, ``p95_ttft_ms`` and the like."""
        for name, value in metrics.items():
            percentile, _, metric = name.partition("_")
            if metric.endswith("_ms"):
                labels = (engine, metric.removesuffix("_ms"), percentile)
                self.observed_s.labels(*labels).set(value / 1e3)

    def render(self, database: Database) -> bytes:
        """The exposition text; jobs and trials are counted in the database when asked."""
        with database.read() as uow:
            jobs, trials = uow.jobs.count_by_state(), uow.trials.count_by_state()
        for state in JobState:
            self._jobs.labels(state=state.value).set(jobs[state])
        for trial_state, count in trials.items():
            self._trials.labels(state=trial_state).set(count)
        return generate_latest(self.registry)
