"""What a live run proves: metrics with sampling intervals, and what the model adds to them.

A run of ``n`` requests shows a metric ``x`` with a 90 % interval, from which ``s`` is its standard
error. Latencies and rates are taken as logarithms, attainment as it is.

* *Sampling.* Requests are drawn again with replacement (``NUM_RESAMPLES`` times). No draw is slower
  than the slowest request, so a latency's interval is made as wide upwards as downwards.
  Attainment, a share, gets Jeffreys' interval. A bound on a percentile has at most the chance that
  it would have if no request had passed it: ``P(share beyond <= 1 - q)`` under the posterior
  ``Beta(1/2, n + 1/2)``, as in 0.85 for a p95 of 20 requests.
* *With the model.* Simulation of the same requests says ``y``, with the error ``m`` of its steps;
  requests that are few are few there too, so its error is ``sqrt(m^2 + s^2)``, or
  ``sqrt((x - y)^2 - s^2)`` where the two disagree by more than that. Both are averaged by inverse
  variance. The model's weight ``w`` is thus at most one half, and falls towards 0 the more it is
  contradicted; the requests count as ``n / (1 - w)``.

Requests of one burst depend on each other, and another minute on a busy machine differs; neither
is in these intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from engine.spec.measurement import Measurement
from engine.spec.settings import Settings
from policies.constraint import Metric
from policies.points import INTERVAL_Z, Estimate, OperatingPoint
from policies.report import LATENCIES, flat_metrics
from policies.sla import Sla

NUM_RESAMPLES = 60
ATTAINMENT = Metric.ATTAINMENT.value


def measured_point(
    settings: Settings,
    measurement: Measurement,
    sla: Sla,
    *,
    simulated: OperatingPoint,
    seed: int,
) -> OperatingPoint:
    """The point of a live run, its chances resting on the run and on ``simulated`` together."""
    metrics = measured_estimates(measurement, sla, seed=seed)
    count = len(measurement.timings)
    beliefs = {
        c.key: with_model(c.key, metrics[c.key], simulated.metrics[c.key], count)
        for c in sla.per_run
        if c.key in metrics and c.key in simulated.metrics
    }
    return OperatingPoint(
        settings=settings, fidelity=measurement.fidelity, metrics=metrics, beliefs=beliefs
    )


def measured_estimates(measurement: Measurement, sla: Sla, *, seed: int) -> dict[str, Estimate]:
    """Metrics of a live run with their sampling intervals."""
    flat = flat_metrics(measurement, sla)
    rng = np.random.default_rng([seed, 0xB007])
    timings = measurement.timings
    draws: list[Mapping[str, float]] = []
    for _ in range(NUM_RESAMPLES):
        picked = rng.integers(0, len(timings), len(timings))
        sample = replace(measurement, timings=tuple(timings[i] for i in picked))
        draws.append(flat_metrics(sample, sla))
    return {
        key: _share(value, len(timings))
        if key == ATTAINMENT
        else _resampled(key, value, [draw[key] for draw in draws if key in draw], len(timings))
        for key, value in flat.items()
    }


def with_model(key: str, measured: Estimate, simulated: Estimate, count: int) -> Estimate:
    """What ``count`` requests and their simulation say together of the metric ``key``."""
    scale = _IDENTITY if key == ATTAINMENT else _LOG
    run, model = scale.read(measured), scale.read(simulated)
    if run is None or model is None or run.error == 0:
        return measured
    apart = run.centre - model.centre
    model_variance = max(model.error**2 + run.error**2, apart**2 - run.error**2)
    weight = run.error**2 / (run.error**2 + model_variance)
    centre, requests = run.centre - weight * apart, count / (1 - weight)
    if key == ATTAINMENT:
        return _share(centre, requests)
    half_width = INTERVAL_Z * run.error * math.sqrt(1 - weight)
    return Estimate(
        value=scale.write(centre),
        low=scale.write(centre - half_width),
        high=scale.write(centre + half_width),
        certainty=_certainty(key, requests),
    )


@dataclass(frozen=True, kw_only=True)
class _Normal:
    """A number in the scale in which its error is normal, and that standard error."""

    centre: float
    error: float


@dataclass(frozen=True)
class _Scale:
    """A scale on which an estimate's error is about normal: ``to`` it and ``write`` back."""

    to: Callable[[float], float]
    write: Callable[[float], float]

    def read(self, estimate: Estimate) -> _Normal | None:
        """None for what has no place there: infinite, or nothing for a logarithm."""
        if not (estimate.low > 0 and math.isfinite(estimate.high)):
            return None
        error = (self.to(estimate.high) - self.to(estimate.low)) / (2 * INTERVAL_Z)
        return _Normal(centre=self.to(estimate.value), error=error)


_LOG = _Scale(math.log, math.exp)
_IDENTITY = _Scale(float, float)


def _share(share: float, count: float) -> Estimate:
    """The share that ``count`` requests showed, with Jeffreys' 90 % interval."""
    from scipy.stats import beta

    low, high = beta.ppf((0.05, 0.95), share * count + 0.5, (1 - share) * count + 0.5)
    return Estimate(value=share, low=min(share, float(low)), high=max(share, float(high)))


def _resampled(key: str, value: float, draws: Sequence[float], count: int) -> Estimate:
    certainty = _certainty(key, count)
    if not draws:
        return Estimate(value=value, low=value, high=value, certainty=certainty)
    known = sorted(draws)
    low = min(value, known[int(0.05 * (len(known) - 1))])
    high = max(value, known[math.ceil(0.95 * (len(known) - 1))])
    if key.endswith(LATENCIES) and low > 0:
        high = max(high, value * (value / low))
    return Estimate(value=value, low=low, high=high, certainty=certainty)


def _certainty(key: str, count: float) -> float:
    """The most that ``count`` requests can make of a bound on ``key``; 1 unless a percentile's."""
    from scipy.special import betainc

    head = key.partition("_")[0]
    if not (head.startswith("p") and head[1:].isdigit()):
        return 1.0
    return float(betainc(0.5, count + 0.5, 1 - int(head[1:]) / 100))
