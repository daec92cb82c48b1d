"""Which forecaster each engine's load has: chosen aside, since that takes seconds an engine."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import structlog

from api.aside.process import AsideLimits
from api.control.aside_queue import AsideQueue
from api.services.forecasts import HORIZON_SLOTS, Chosen, choose_cheaply
from policies.forecast import Backtest, judge, judgeable
from policies.forecasters import CONSTANT, Forecaster
from policies.load_history import LoadHistory
from store.models.base import Json
from tuner.spec.forecasters import get_forecaster, list_forecasters

CHOOSE_EVERY_S = 3600.0
LIMITS = AsideLimits(seconds=120.0, memory_mib=1024)


class ForecasterChoices:
    """The forecaster of each engine, chosen anew every hour; after a restart, too.

    Until one is chosen, and where that fails, a cheap one forecasts. ``pinned`` is the name of the
    one that every engine has, whatever it errs; until it can be judged the constant forecasts.
    None: all are tried.
    """

    def __init__(self, pinned: str | None = None) -> None:
        self._pinned = pinned
        self._queue = AsideQueue("choose_forecaster", LIMITS)
        self._chosen: dict[str, tuple[float, Chosen | None]] = {}
        self._log = structlog.get_logger("api.control.forecaster_choices")

    def of(self, engine_id: str, history: LoadHistory, now_s: float) -> Chosen:
        """The choice in force; asks for another where its hour is over."""
        answer = self._queue.take(engine_id)
        if answer is not None:
            self._chosen[engine_id] = now_s, self._read(engine_id, answer)
        chosen_s, chosen = self._chosen.get(engine_id, (-math.inf, None))
        is_due = now_s - chosen_s >= CHOOSE_EVERY_S and self._queue.can_ask(engine_id)
        if is_due and judgeable(history, HORIZON_SLOTS, self._candidates()):
            question = {"horizon": HORIZON_SLOTS, "pinned": self._pinned}
            self._queue.ask(engine_id, {**history.to_json(), **question})
        return chosen or self._meanwhile(history)

    def _candidates(self) -> Sequence[Forecaster]:
        return list_forecasters() if self._pinned is None else [get_forecaster(self._pinned)]

    def _meanwhile(self, history: LoadHistory) -> Chosen:
        if self._pinned is None:
            return choose_cheaply(history)
        return CONSTANT, judge(CONSTANT, history, HORIZON_SLOTS)

    def _read(self, engine_id: str, answer: Json) -> Chosen | None:
        if "error" in answer:
            self._log.warning("no forecaster chosen", engine=engine_id, error=answer["error"])
            return None
        forecaster = get_forecaster(answer["forecaster"])
        errors = np.array(answer["errors"], dtype=np.float64)
        return forecaster, Backtest(forecaster=forecaster.name, errors=errors)
