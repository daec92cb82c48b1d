"""A capacity table of replicas that carry 2 requests/s each, and forecasts of a given rate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from policies.capacity_state import CapacityState
from policies.capacity_table import CapacityTable, CarriedRate
from policies.forecast import Backtest, Forecast
from policies.load_history import SLOT_S, LoadHistory
from policies.sla import Sla

RATE_OF_ONE_RPS = 2.0
MIX = (500.0, 50.0)
SLA = Sla.parse("p95_ttft_ms<=500,attainment>=0.9")


def settings_of(replicas: int, *, tp: int = 1) -> Settings:
    return Settings(plan=ParallelPlan(dp=replicas, tp=tp), caps=Caps(max_num_seqs=64))


def entry(replicas: int, *, rate_rps: float | None = None, tp: int = 1) -> CarriedRate:
    rate = replicas * RATE_OF_ONE_RPS if rate_rps is None else rate_rps
    return CarriedRate(
        settings=settings_of(replicas, tp=tp), rate_rps=rate, low_rps=rate, high_rps=rate
    )


def table(*entries: CarriedRate) -> CapacityTable:
    return CapacityTable(
        sla=SLA,
        mean_input_tokens=MIX[0],
        mean_output_tokens=MIX[1],
        entries=entries or tuple(entry(n) for n in (1, 2, 3, 4)),
    )


def ahead(
    *rates_rps: float,
    error: float = 0.0,
    busiest_rps: float = 100.0,
    past_rps: Sequence[float] = (),
) -> Forecast:
    """A forecast whose peaks were off by ``error`` (logs) every time before; ``past_rps`` (else one
    slot of ``busiest_rps``) is the history."""
    return Forecast(
        rates_rps=np.array(rates_rps),
        slot_s=SLOT_S,
        history=LoadHistory(rates_rps=np.array(past_rps or (busiest_rps,))),
        backtest=Backtest(forecaster="constant", errors=np.full(40, error)),
    )


def state(rate_rps: float, replicas: int, **extra: object) -> CapacityState:
    """What is known of an engine of so many replicas, and of its load."""
    known: dict[str, object] = {
        "table": table(),
        "now_s": 10_000.0,
        "current": entry(replicas),
        "forecast": ahead(rate_rps),
        "observed_rps": rate_rps,
    }
    return CapacityState(**{**known, **extra})
