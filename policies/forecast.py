"""A forecast of the load, by whoever forecast this engine's load best so far.

What capacity must hold is the *peak* of a horizon, so that is what forecasters are judged by, and
what the margin is learned from: how far earlier peaks lay above those forecast for them. No shape
of the errors is assumed (split conformal prediction: Vovk et al. 2005). What luck alone adds to the
busiest minute is no part of a peak: a capacity is of a load with its luck.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from policies.errors import PolicyInputError
from policies.forecasters import CONSTANT, FORECASTERS, LEVEL_SLOTS, Forecaster, Rates
from policies.load_history import LoadHistory

# The number of rolling origins at which a forecaster is judged.
NUM_ORIGINS = 12
# The factor above everything seen that a peak may be expected at, and that is expected of an engine
# too young to tell.
SURPRISE = 1.25
# Rates below this count as this much: ratios of next to nothing say nothing.
LEAST_RPS = 1e-3
# A forecaster is chosen over the constant only where it errs less by more than this share.
LEAST_GAIN = 0.05


@dataclass(frozen=True, kw_only=True, eq=False)
class Backtest:
    """How one forecaster did: ``errors`` are logs of a horizon's peak over the peak forecast."""

    forecaster: str
    errors: Rates

    @property
    def score(self) -> float:
        """Mean absolute error of the peak, in logs; infinite where nothing was judged."""
        return float(np.mean(np.abs(self.errors))) if len(self.errors) else math.inf


@dataclass(frozen=True, kw_only=True, eq=False)
class Forecast:
    """Mean rates f8[H] of the slots that follow, by whom, and the errors of earlier ones.

    ``history`` is what it was made from.
    """

    rates_rps: Rates
    slot_s: float
    history: LoadHistory
    backtest: Backtest

    def peak_rps(self, chance: float, *, caution: float = 1.0) -> float:
        """The rate that no slot of the horizon exceeds, with ``chance``.

        ``caution`` from 0 to 1 is the share of what this lies above the forecast (in logs) that is
        wanted: 0 is the forecast itself, or less where it always was too high.

        An error's quantile is the one that ``chance`` of n + 1 equally likely errors would not
        exceed; with fewer errors than that takes, it is the largest seen, and of a young engine a
        quarter, less what luck may have brought in the minutes that are known. What is more than a
        quarter above all that was seen or is forecast is not prepared for: a load that often jumps
        from 3 to 12 does not jump to 48.

        Raises:
            PolicyInputError: a chance outside (0, 1), or a caution outside [0, 1].
        """
        if not (0 < chance < 1 and 0 <= caution <= 1):
            raise PolicyInputError(
                f"chance={chance} must be above 0 and below 1, caution={caution} from 0 to 1"
            )
        peak = max(float(np.max(self.rates_rps)), LEAST_RPS)
        errors = np.sort(self.backtest.errors)
        if not len(errors):
            luck = self.history.newest(LEVEL_SLOTS).mean_luck
            above_rps = peak * max(SURPRISE * (1 - luck), 1.0)
        else:
            rank = min(math.ceil(chance * (len(errors) + 1)), len(errors))
            most = max(peak, self.history.peak_rps) * SURPRISE
            above_rps = min(peak * math.exp(float(errors[rank - 1])), most)
        return min(above_rps, float(peak * (above_rps / peak) ** caution))

    def returns_s(self, level_rps: float, chance: float, *, within_s: float) -> float:
        """How long a load above ``level_rps`` stays away before it comes back, of those that came
        back ``within_s`` the time that ``chance`` of them do not exceed; 0 where none did.

        What comes back once a day is no reason to wait for it.
        """
        gaps = np.sort([gap for gap in self._gaps(level_rps) if gap * self.slot_s <= within_s])
        if not len(gaps):
            return 0.0
        rank = min(math.ceil(chance * (len(gaps) + 1)), len(gaps))
        return float(gaps[rank - 1]) * self.slot_s

    def _gaps(self, level_rps: float) -> Iterator[int]:
        """Slots from one that was surely above the level to the next, where one between them was
        surely below: a load at the level crosses it by luck all the time."""
        least, most = self.history.bounds_rps
        last, was_below = None, False
        for nth, (low, high) in enumerate(zip(least, most, strict=True)):
            if low > level_rps:
                if last is not None and was_below:
                    yield nth - last
                last, was_below = nth, False
            elif high < level_rps:
                was_below = True


def choose(
    history: LoadHistory,
    horizon: int,
    *,
    forecasters: Sequence[Forecaster] = FORECASTERS,
    origins: int = NUM_ORIGINS,
) -> tuple[Forecaster, Backtest]:
    """The forecaster with the smallest error on this history; the constant unless another errs
    less by ``LEAST_GAIN``. Who needs more history than there was at the first origin is left out.
    """
    at = _origins(len(history), horizon, origins)
    best, least = CONSTANT, backtest(CONSTANT, history, horizon, at)
    limit = least.score * (1 - LEAST_GAIN)
    for forecaster in judgeable(history, horizon, forecasters, origins=origins):
        tried = backtest(forecaster, history, horizon, at)
        if tried.score < min(limit, least.score):
            best, least = forecaster, tried
    return best, least


def judge(forecaster: Forecaster, history: LoadHistory, horizon: int) -> Backtest:
    """How ``forecaster`` did on this history, where it had enough; with no errors else."""
    is_judgeable = forecaster is CONSTANT or judgeable(history, horizon, [forecaster])
    at = _origins(len(history), horizon, NUM_ORIGINS) if is_judgeable else []
    return backtest(forecaster, history, horizon, at)


def judgeable(
    history: LoadHistory,
    horizon: int,
    forecasters: Sequence[Forecaster],
    *,
    origins: int = NUM_ORIGINS,
) -> list[Forecaster]:
    """Those beside the constant that had enough history at the first origin."""
    at = _origins(len(history), horizon, origins)
    others = [f for f in forecasters if f is not CONSTANT]
    return [f for f in others if at and f.needs(history.slot_s) <= at[0]]


def backtest(
    forecaster: Forecaster, history: LoadHistory, horizon: int, at: Sequence[int]
) -> Backtest:
    """Let ``forecaster`` predict from the first ``at[i]`` slots, and compare with what came."""
    errors = [
        _log(history.between(t, t + horizon).peak_rps)
        - _log(np.max(forecaster.predict(history.until(t), horizon)))
        for t in at
    ]
    return Backtest(forecaster=forecaster.name, errors=np.array(errors))


def _origins(total: int, horizon: int, most: int) -> list[int]:
    """Lengths of history to predict from: evenly over the last third, each with a horizon after."""
    first, last = max(1, 2 * total // 3), total - horizon
    if last < first:
        return []
    at = np.linspace(first, last, min(most, last - first + 1))
    return sorted({int(t) for t in at})


def forecast(
    history: LoadHistory, horizon: int, *, chosen: tuple[Forecaster, Backtest] | None = None
) -> Forecast | None:
    """Rates of the next ``horizon`` slots; None without any history. ``chosen``: by whom, where
    that was decided before."""
    if not len(history):
        return None
    forecaster, judged = chosen or choose(history, horizon)
    if forecaster.needs(history.slot_s) > len(history):
        forecaster = CONSTANT
    return Forecast(
        rates_rps=forecaster.predict(history, horizon),
        slot_s=history.slot_s,
        history=history,
        backtest=judged,
    )


def _log(rate_rps: float) -> float:
    return math.log(max(float(rate_rps), LEAST_RPS))
