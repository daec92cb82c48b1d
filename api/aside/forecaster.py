"""The forecaster that would have forecast a load best so far."""

from __future__ import annotations

from typing import Any

from policies.forecast import choose, judge
from policies.load_history import LoadHistory
from tuner.spec.forecasters import get_forecaster, list_forecasters

Json = dict[str, Any]


def chosen_forecaster(question: Json) -> Json:
    """Its name, and the ``errors`` of its backtest (:class:`policies.forecast.Backtest`).

    ``question``: a :class:`LoadHistory`, the ``horizon`` in slots, and ``pinned``, the name of the
    one that is to forecast whatever it errs, or None.
    """
    history, horizon = LoadHistory.from_json(question), question["horizon"]
    if question["pinned"] is None:
        judged = choose(history, horizon, forecasters=list_forecasters())[1]
    else:
        judged = judge(get_forecaster(question["pinned"]), history, horizon)
    return {"forecaster": judged.forecaster, "errors": judged.errors.tolist()}
