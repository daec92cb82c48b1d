"""What the controller saw of an engine last, as its row keeps it for every control plane."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from policies.observation import Observation
from store.models.base import Json


@dataclass(frozen=True, kw_only=True)
class LiveWindow:
    """One window of traffic: what was observed, what the recommendation predicts of it.

    ``observed_ms`` and ``predicted_ms`` are by name, ``p95_ttft_ms``. ``load_ratio`` is the load
    over the most that the engine serves within its SLA (``policies.replicas``), None if unknown.
    """

    seen_at_s: float
    attainment: float | None
    observed_ms: dict[str, float] = field(default_factory=dict)
    predicted_ms: dict[str, float] = field(default_factory=dict)
    load_ratio: float | None = None

    @classmethod
    def of(
        cls,
        seen: Observation,
        *,
        predicted: Mapping[str, Any],
        load_ratio: float | None,
        now_s: float,
    ) -> LiveWindow:
        """The window of an observation; ``predicted`` has values by percentile for each metric."""
        return cls(
            seen_at_s=now_s,
            attainment=None if seen.report is None else seen.report.attainment,
            observed_ms={
                name: value for name, value in seen.metrics.items() if name.endswith("_ms")
            },
            predicted_ms=dict(_flat(predicted)),
            load_ratio=load_ratio,
        )

    @classmethod
    def from_json(cls, document: Json) -> LiveWindow:
        """Read what :meth:`to_json` wrote."""
        return cls(**document)

    def to_json(self) -> Json:
        return asdict(self)


def _flat(predicted: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for metric, values in predicted.items():
        if metric.endswith("_ms") and isinstance(values, Mapping):
            for percentile, value in values.items():
                if value:
                    yield f"{percentile}_{metric}", value
