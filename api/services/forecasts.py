"""Forecasts of an engine's load, from the minutes that are kept of it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from api.documents.control_state import capacity_from_json, slot_of
from api.schemas.serving import ForecastView
from api.web.errors import ApiError
from policies.capacity_table import CapacityTable
from policies.forecast import Backtest, Forecast, choose, forecast, judge
from policies.forecasters import CONSTANT, Forecaster, SeasonalNaive
from policies.load_history import LoadHistory, LoadSlot
from store import UnitOfWork
from store.decisions import CAPACITY
from store.models import EngineRow
from tuner.spec.forecasters import list_forecasters

# Minutes that a forecast looks ahead: until the slow loop's next turn, plus the start of ranks.
HORIZON_SLOTS = 5
# Seasonal forecasts need two days; more says little of today.
HISTORY_S = 3 * 86_400
# The probability that the peak stays below what the slow loop keeps capacity for.
CHANCE = 0.9
Chosen = tuple[Forecaster, Backtest]


def history_of(
    uow: UnitOfWork,
    engine: EngineRow,
    *,
    now_s: float,
    mix: tuple[float, float] | None,
    under_way: Sequence[LoadSlot] = (),
) -> LoadHistory:
    """The minutes of the last days, in requests of ``mix``; ``under_way``: what is known of this
    one."""
    rows = uow.loads.list_between(engine.id, int(now_s) - HISTORY_S, now_s)
    return LoadHistory.of((*map(slot_of, rows), *under_way), mix=mix)


def tell(uow: UnitOfWork, engine_id: str) -> ForecastView:
    """What the next minutes bring, by the forecaster that the controller has chosen for this engine
    (by a cheap one, where it has not chosen yet).

    Raises:
        NotFoundError: no such engine.
        ApiError: 409, nothing is kept of its load.
    """
    engine = uow.engines.get(engine_id)
    mix = None
    if engine.capacity_table is not None:
        mix = CapacityTable.from_json(engine.capacity_table).mix
    history = history_of(uow, engine, now_s=time.time(), mix=mix)
    found = forecast(history, HORIZON_SLOTS, chosen=choose_known(uow, engine, history))
    if found is None:
        raise ApiError(
            409,
            "no_history",
            "nothing is kept of this engine's load; it is kept by the minute from when a "
            "recommendation with a capacity table was applied",
        )
    caution = capacity_from_json(engine.capacity_memory).caution
    return _view(engine_id, history, found, mix, caution)


def choose_known(uow: UnitOfWork, engine: EngineRow, history: LoadHistory) -> Chosen:
    """The forecaster that the slow loop has chosen, or a cheap one: fitting all candidates takes
    seconds, which nobody waits for here."""
    last = uow.decisions.find_last(engine.id, loop=CAPACITY)
    name = None if last is None else last.observed.get("forecaster")
    known = next((f for f in list_forecasters() if f.name == name), None)
    if known is None:
        return choose_cheaply(history)
    return known, judge(known, history, HORIZON_SLOTS)


def choose_cheaply(history: LoadHistory) -> Chosen:
    """The better of the two forecasters that need no fitting."""
    return choose(history, HORIZON_SLOTS, forecasters=(CONSTANT, SeasonalNaive()))


def _view(
    engine_id: str,
    history: LoadHistory,
    found: Forecast,
    mix: tuple[float, float] | None,
    caution: float,
) -> ForecastView:
    return ForecastView(
        engine_id=engine_id,
        forecaster=found.backtest.forecaster,
        slot_s=found.slot_s,
        rates_rps=[float(rate) for rate in found.rates_rps],
        peak_rps=found.peak_rps(CHANCE),
        expected_peak_rps=found.peak_rps(CHANCE, caution=0.0),
        held_peak_rps=found.peak_rps(CHANCE, caution=caution),
        chance=CHANCE,
        mean_input_tokens=None if mix is None else mix[0],
        mean_output_tokens=None if mix is None else mix[1],
        history_slots=len(history),
        backtests=len(found.backtest.errors),
        peak_error=found.backtest.score if len(found.backtest.errors) else None,
    )
