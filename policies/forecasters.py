"""Forecasters of a load: one protocol, five ways.

Each predicts the rates of the next slots from those so far. Fitting is statsmodels' business. Who
forecasts which engine is decided by :mod:`policies.forecast`, on the engine's own history.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from policies.load_history import DAY_S, LoadHistory

Rates = npt.NDArray[np.float64]

# The most slots that a model is fitted to: older ones say little about the next minutes, and
# fitting takes longer with more.
MOST_FITTED = 120
# With fewer slots, a fit would take noise for a trend.
LEAST_FITTED = 12
# The constant is the mean of this many slots.
LEVEL_SLOTS = 3
# How many days are averaged: the mean has less luck in it than a single day.
MOST_PERIODS = 3


class Forecaster(Protocol):
    """Predicts rates."""

    @property
    def name(self) -> str: ...

    def needs(self, slot_s: float, /) -> int:
        """Slots of ``slot_s`` seconds of history without which it cannot."""
        ...

    def predict(self, history: LoadHistory, horizon: int) -> Rates:
        """Mean rates f8[horizon] of the slots that follow, each at least 0."""
        ...


@dataclass(frozen=True)
class Constant:
    """It goes on as in the last minutes."""

    name: str = "constant"

    def needs(self, _slot_s: float, /) -> int:
        return 1

    def predict(self, history: LoadHistory, horizon: int) -> Rates:
        return np.full(horizon, float(np.mean(history.rates_rps[-LEVEL_SLOTS:])))


@dataclass(frozen=True)
class SeasonalNaive:
    """It goes as it went at this time of the last periods (their mean; ``MOST_PERIODS`` at most),
    at the level of today.

    The level is the last hour's mean over that of the same hour of those periods, within a factor
    of 2 of 1.
    """

    name: str = "seasonal_naive"
    period_s: float = DAY_S
    level_s: float = 3600.0

    def needs(self, slot_s: float, /) -> int:
        return self._period(slot_s) + 1

    def predict(self, history: LoadHistory, horizon: int) -> Rates:
        rates, period = history.rates_rps, self._period(history.slot_s)
        count = max(1, min(round(self.level_s / history.slot_s), len(rates) - period))
        periods = max(1, min((len(rates) - count) // period, MOST_PERIODS))
        begins = [len(rates) - nth * period for nth in range(1, periods + 1)]
        usual = np.mean([rates[begin : begin + period] for begin in begins], axis=0)
        now = float(np.mean(rates[-count:]))
        then = float(np.mean([rates[begin - count : begin] for begin in begins]))
        level = float(np.clip(now / then, 0.5, 2.0)) if then > 0 else 1.0
        return np.resize(usual, horizon) * level

    def _period(self, slot_s: float) -> int:
        return max(1, round(self.period_s / slot_s))


@dataclass(frozen=True)
class Fitted:
    """A model of statsmodels, fitted to the last slots at every prediction."""

    name: str
    fit: Callable[[Rates, int], Rates]

    def needs(self, _slot_s: float, /) -> int:
        return LEAST_FITTED

    def predict(self, history: LoadHistory, horizon: int) -> Rates:
        rates = history.rates_rps[-MOST_FITTED:]
        if float(np.ptp(rates)) == 0.0:
            return np.full(horizon, rates[-1])  # nothing to fit, and optimisers stumble over it
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fits that have not converged: backtests judge
            return np.maximum(self.fit(rates, horizon), 0.0)


def _smoothing(rates: Rates, horizon: int) -> Rates:
    """Exponential smoothing with a damped trend (ETS(A,Ad,N): Hyndman et al. 2008)."""
    from statsmodels.tsa.holtwinters import ExponentialSmoothing

    model: Any = ExponentialSmoothing(
        rates, trend="add", damped_trend=True, initialization_method="estimated"
    )
    return np.asarray(model.fit().forecast(horizon))


def _arima(rates: Rates, horizon: int) -> Rates:
    """ARIMA(1,1,1): differences that remember one step and one error."""
    from statsmodels.tsa.arima.model import ARIMA

    model: Any = ARIMA(rates, order=(1, 1, 1))
    return np.asarray(model.fit(method_kwargs={"maxiter": 50}).forecast(horizon))


def _kalman(rates: Rates, horizon: int) -> Rates:
    """A local linear trend, filtered by Kalman (Harvey 1989)."""
    from statsmodels.tsa.statespace.structural import UnobservedComponents

    model: Any = UnobservedComponents(rates, level="local linear trend")
    return np.asarray(model.fit(disp=False, maxiter=50).forecast(horizon))


CONSTANT: Forecaster = Constant()
# The first is the one that all others have to beat.
FORECASTERS: tuple[Forecaster, ...] = (
    CONSTANT,
    SeasonalNaive(),
    Fitted(name="exponential_smoothing", fit=_smoothing),
    Fitted(name="arima", fit=_arima),
    Fitted(name="kalman", fit=_kalman),
)
