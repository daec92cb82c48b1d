"""The forecaster that would have forecast a load best so far."""

from __future__ import annotations

from typing import Any

from policies.forecast import choose
from policies.load_history import LoadHistory
from tuner.spec.forecasters import list_forecasters

Json = dict[str, Any]


def chosen_forecaster(question: Json) -> Json:
    """Its name, and the ``errors`` of its backtest (:class:`policies.forecast.Backtest`).

    ``question``: a :class:`LoadHistory`, and the ``horizon`` in slots.
    """
    history = LoadHistory.from_json(question)
    forecaster, judged = choose(history, question["horizon"], forecasters=list_forecasters())
    return {"forecaster": forecaster.name, "errors": judged.errors.tolist()}
