"""A forecaster for loads that come in waves: the next minutes are as high as the last half hour."""

import numpy as np

from policies.load_history import LoadHistory

LOOK_BACK_S = 1800.0


class HighWater:
    name = "high_water"

    def needs(self, slot_s: float, /) -> int:
        return round(LOOK_BACK_S / slot_s)

    def predict(self, history: LoadHistory, horizon: int) -> np.ndarray:
        seen = history.rates_rps[-self.needs(history.slot_s) :]
        return np.full(horizon, seen.max())
