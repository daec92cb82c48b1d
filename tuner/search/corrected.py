"""Corrects arithmetic by what trials found, to say which combination is worth the next evaluation.

Each metric is its estimate (``tuner.search.estimate``) times a factor. A Gaussian process learns
the factors from the points so far: a trial corrects the estimates of combinations like it, and
little is claimed about combinations unlike all that was tried. Candidates are ranked by the
favourable end of their interval, so that unknown ones get a chance.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from engine.executors.protocol import StepTimer
from engine.spec.measurement import Fidelity
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Settings
from policies.objective import NOTICEABLE, Objective
from policies.points import Estimate, OperatingPoint, exact_from_json, exact_to_json
from policies.sla import Sla
from tuner.search.design import rank_point
from tuner.search.estimate import Estimator
from tuner.search.grid import FloatArray, Grid
from tuner.search.surrogate import Load

# The spread of the errors of estimates, as a log ratio, and the share of it that each combination
# has of its own.
SPREAD = 0.6
NOISE = 0.02
# Errors of estimates stay alike over this many octaves of a knob: the length scale, fitted within
# these bounds once there are enough points. A cap that never binds gets a long one.
LENGTH = 2.0
LENGTHS = (0.5, 32.0)
ENOUGH = 6
# How many standard errors the favourable end of an interval is away, and the next ones to try where
# that promises nothing.
OPTIMISM = (1.0, 2.0, 4.0)
# Errors are capped here: an estimate further off is of an endless overload.
MOST = 3.0


@dataclass(kw_only=True)
class Corrected:
    """Estimates of one grid under one load, and what points say of their errors."""

    grid: Grid
    sla: Sla
    load: Load
    timer: Callable[[ParallelPlan], StepTimer]
    objective: Objective = Objective.DEVICES
    _known: dict[Settings, OperatingPoint] = field(default_factory=dict)
    _rows: dict[int, OperatingPoint] = field(default_factory=dict)

    @property
    def num_known(self) -> int:
        """Settings whose estimates are solved."""
        return len(self._known)

    def to_json(self) -> dict[str, Any]:
        """Every solved estimate: of the grid's rows by their numbers, of others by their
        settings."""
        of_rows = {id(point) for point in self._rows.values()}
        return {
            "rows": {str(row): exact_to_json(point.metrics) for row, point in self._rows.items()},
            "others": [
                [settings.to_json(), exact_to_json(point.metrics)]
                for settings, point in self._known.items()
                if id(point) not in of_rows
            ],
        }

    def know(self, raw: dict[str, Any]) -> None:
        """Take over the estimates that :meth:`to_json` of another process wrote."""
        for row, values in raw["rows"].items():
            settings = self.grid.settings(int(row))
            self._rows[int(row)] = self._known[settings] = _guess(settings, values)
        for document, values in raw["others"]:
            settings = Settings.from_json(document)
            self._known[settings] = _guess(settings, values)

    @cached_property
    def _estimator(self) -> Estimator:
        return Estimator(load=self.load, timer=self.timer, sla=self.sla)

    def estimate(self, row: int) -> OperatingPoint:
        """What arithmetic says of that row."""
        if row not in self._rows:
            self._rows[row] = self.estimate_of(self.grid.settings(row))
        return self._rows[row]

    def estimate_of(self, settings: Settings) -> OperatingPoint:
        """What it says of ``settings``, whether the grid has them or not; solved once."""
        if settings not in self._known:
            self._known[settings] = self._estimator.estimate(settings)
        return self._known[settings]

    def ranked(self, rows: Sequence[int], points: Sequence[OperatingPoint]) -> list[int]:
        """``rows`` by the favourable ends of their intervals after ``points``, best first.

        Rows that arithmetic cannot tell from one that was tried (caps that never bind) come last.
        If no favourable end is noticeably better than the best point so far, ends further out
        count, so that a search looks elsewhere instead of trying again what it knows.
        """
        guesses = [self.estimate(row) for row in rows]
        beliefs = [self._belief(key, rows, points) for key in self._keys()]
        orders = [self._order(point) for point in points]
        order: list[tuple[float, ...]] = []
        for optimism in OPTIMISM:
            order = [
                self._order(self._at(guess, i, beliefs, optimism))
                for i, guess in enumerate(guesses)
            ]
            if not orders or min(order) < min(orders):
                break
        tried = {_likeness(self.estimate_of(point.settings)) for point in points}
        is_twin = [_likeness(guess) in tried for guess in guesses]
        return [
            rows[i] for i in sorted(range(len(rows)), key=lambda i: (is_twin[i], order[i], rows[i]))
        ]

    def _keys(self) -> list[str]:
        """What the SLA bounds and arithmetic knows."""
        known = self.estimate(0).metrics
        return [c.key for c in self.sla.per_run if c.key in known]

    def _order(self, point: OperatingPoint) -> tuple[float, ...]:
        return rank_point(point, self.sla, self.objective)

    def _belief(self, key: str, rows: Sequence[int], points: Sequence[OperatingPoint]) -> Belief:
        """Log ratios to the estimates of ``rows``, with which end is favourable."""
        known = [point for point in points if key in point.metrics]
        sign = -1.0 if _is_latency(self.sla, key) else 1.0
        if not known:
            nothing = np.zeros(len(rows))
            return Belief(key=key, sign=sign, mean=nothing, error=nothing)
        places = np.array([self.grid.place(point.settings) for point in known])
        ratios = np.array([_log_ratio(p, self.estimate_of(p.settings), key) for p in known])
        mean, error = predict(places, ratios, self.grid.scaled[list(rows)])
        return Belief(key=key, sign=sign, mean=mean, error=error)

    def _at(
        self, guess: OperatingPoint, i: int, beliefs: Sequence[Belief], optimism: float
    ) -> OperatingPoint:
        """Candidate ``i`` at its favourable end, less a difference that is hardly noticeable."""
        metrics = dict(guess.metrics)
        for belief in beliefs:
            log = belief.mean[i] + belief.sign * (optimism * belief.error[i] - NOTICEABLE)
            metrics[belief.key] = Estimate.exact(metrics[belief.key].value * float(np.exp(log)))
        return replace(guess, metrics=metrics)


@dataclass(frozen=True, kw_only=True)
class Belief:
    """What is believed of one metric: log(true / estimated) of each candidate with its standard
    error; ``sign`` -1 where less is better."""

    key: str
    sign: float
    mean: FloatArray
    error: FloatArray


def predict(
    places: FloatArray, values: FloatArray, where: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Mean and standard error at ``where`` f8[M, K] of a function with ``values`` f8[N] at
    ``places`` f8[N, K]."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern

    lengths = np.full(places.shape[1], LENGTH)
    kernel = ConstantKernel(SPREAD**2, "fixed") * Matern(lengths, LENGTHS, nu=1.5)
    is_enough = len(values) >= ENOUGH
    process = GaussianProcessRegressor(
        kernel, alpha=NOISE**2, optimizer="fmin_l_bfgs_b" if is_enough else None
    )
    with warnings.catch_warnings():
        # A length at its end says that a knob hardly matters, or matters by itself.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(places, values)
    mean, error = process.predict(where, return_std=True)
    return np.asarray(mean), np.asarray(error)


def _guess(settings: Settings, values: dict[str, Any]) -> OperatingPoint:
    metrics = exact_from_json(values)
    return OperatingPoint(settings=settings, fidelity=Fidelity.PREDICTED, metrics=metrics)


def _likeness(guess: OperatingPoint) -> tuple[ParallelPlan, frozenset[tuple[str, Estimate]]]:
    """Equal for combinations of one plan with the same estimates."""
    return guess.settings.plan, frozenset(guess.metrics.items())


def _log_ratio(point: OperatingPoint, guess: OperatingPoint, key: str) -> float:
    found, expected = point.metrics[key].value, guess.metrics[key].value
    ratio = np.log(max(found, 1e-9)) - np.log(max(expected, 1e-9))
    return float(np.clip(ratio, -MOST, MOST))


def _is_latency(sla: Sla, key: str) -> bool:
    return any(c.key == key and c.metric.is_latency for c in sla.constraints)
