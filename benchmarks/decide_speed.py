"""Question: how much CPU do the controller's decisions for a thousand engines take?

Asked: both loops under 1 s on one core. Told apart: the two pure functions (``decide``,
``decide_capacity``), a forecast with and without choosing the forecaster anew, and a whole tick of
the controller over a database: heartbeats read and judged, memories kept. CPU seconds of this
process, so that other programs change little.

    python -m benchmarks.decide_speed --engines 1000 --rounds 5
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from api.control.controller import Controller
from api.documents.policy import PolicyDocument, model_to_json
from api.schemas.serving import Acknowledge
from api.services.audit import service_caller
from api.services.in_force import adopt
from api.services.policies import current
from api.services.policy_acks import note_ack
from api.web.context import AppContext
from api.web.metrics import ServiceMetrics
from api.web.settings import ServiceSettings
from engine.policy.knobs import ADMISSION_RATE
from engine.spec.inventory import Inventory, RankKind
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from migrations.runner import upgrade
from policies.capacity_loop import decide_capacity
from policies.capacity_state import CapacityLimits, CapacityState, SwitchCost
from policies.capacity_table import CapacityTable, CarriedRate
from policies.controller import ControlMemory, ControlState, LoadWindow, decide
from policies.forecast import Forecast, choose, forecast
from policies.load_history import LoadHistory
from policies.schedule import LoadBand, Schedule
from policies.sla import Sla
from store import Database, UnitOfWork
from store.engines import Window
from store.models import EngineRow
from tests.models import MODEL

SLA = "p95_ttft_ms<=500,p95_tpot_ms<=50,attainment>=0.99"
MIXES = ((1024.0, 128.0), (8000.0, 400.0))
HORIZON_SLOTS = 5
DAY_SLOTS = 1440
TARGET_S = 1.0
# Forecasts that are timed: fitting one takes a thousand times as long as deciding by it.
FEW = 10
BEATS = 3


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line: what was done for how many engines, and CPU seconds of each round."""

    name: str
    num_engines: int
    rounds_s: tuple[float, ...]

    def __str__(self) -> str:
        low, high = min(self.rounds_s), max(self.rounds_s)
        return (
            f"| {self.name} | {self.num_engines} | {np.median(self.rounds_s):.3f} "
            f"| {low:.3f} to {high:.3f} |"
        )


def main() -> None:
    """Measure and print one table."""
    options = _options()
    rng = np.random.default_rng(0)
    print(f"| what | engines | CPU s, median of {options.rounds} | range |")
    print("|---|---|---|---|")
    both = _both_loops(options, rng)
    for row in both:
        print(row)
    total_s = sum(float(np.median(row.rounds_s)) for row in both[:2])
    print(f"both loops: {total_s:.3f} s for {options.engines} engines (asked: {TARGET_S:g})")
    for row in _ticks(options, rng):
        print(row)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--database-engines", type=int, default=1000, help="of the whole ticks")
    return parser.parse_args()


def _measured(name: str, count: int, rounds: int, work: Callable[[], object]) -> Row:
    found = []
    for _ in range(rounds):
        begin_s = time.process_time()
        work()
        found.append(time.process_time() - begin_s)
    return Row(name=name, num_engines=count, rounds_s=tuple(found))


# -- the pure functions ----------------------------------------------------------------------------


def _both_loops(options: argparse.Namespace, rng: np.random.Generator) -> list[Row]:
    count, rounds = options.engines, options.rounds
    schedule, table = _schedule(), _table()
    fast = [_fast_state(schedule, float(rate)) for rate in rng.uniform(0.5, 40, count)]
    history = LoadHistory(rates_rps=_two_days(rng))
    chosen = choose(history, HORIZON_SLOTS)
    ahead = forecast(history, HORIZON_SLOTS, chosen=chosen)
    assert ahead is not None, "there is a history"
    slow = [_slow_state(table, ahead, float(rate)) for rate in rng.uniform(0.5, 60, count)]

    def look_ahead() -> None:
        for _ in range(FEW):
            forecast(history, HORIZON_SLOTS, chosen=chosen)

    return [
        _measured("`decide` (fast loop)", count, rounds, lambda: [decide(s) for s in fast]),
        _measured(
            "`decide_capacity` (slow loop)",
            count,
            rounds,
            lambda: [decide_capacity(s) for s in slow],
        ),
        _measured(f"forecasts by `{chosen[0].name}`, of two days", FEW, 1, look_ahead),
        _measured(
            "a forecaster chosen anew (once an hour), of two days",
            1,
            1,
            lambda: choose(history, HORIZON_SLOTS),
        ),
    ]


def _schedule() -> Schedule:
    plan = ParallelPlan(sp=2, tp=2, shift=True)
    edges = (0.0, 5.0, 10.0, 20.0, 40.0, 80.0)
    return Schedule(
        bands=tuple(
            LoadBand(
                rate_rps_low=low,
                rate_rps_high=high,
                mean_input_tokens=mix[0],
                mean_output_tokens=mix[1],
                settings=Settings(plan=plan, caps=Caps(max_num_seqs=32 * (nth + 1))),
                headroom=0.5 - 0.1 * nth,
            )
            for mix in MIXES
            for nth, (low, high) in enumerate(pairwise(edges))
        )
    )


def _table() -> CapacityTable:
    return CapacityTable(
        sla=Sla.parse(SLA),
        mean_input_tokens=MIXES[0][0],
        mean_output_tokens=MIXES[0][1],
        entries=tuple(
            CarriedRate(
                settings=Settings(plan=ParallelPlan(dp=dp, sp=2, tp=2, shift=True)),
                rate_rps=6.0 * dp,
                low_rps=5.5 * dp,
                high_rps=6.5 * dp,
            )
            for dp in range(1, 9)
        ),
    )


def _fast_state(schedule: Schedule, rate_rps: float) -> ControlState:
    load = LoadWindow(
        window_s=15.0,
        rate_rps=rate_rps,
        mean_input_tokens=1200.0,
        mean_output_tokens=140.0,
        num_requests=60,
        is_sla_met=True,
    )
    first = decide(ControlState(schedule=schedule, now_s=0.0, load=load, memory=ControlMemory()))
    return ControlState(
        schedule=schedule,
        now_s=60.0,
        load=replace(load, rate_rps=1.3 * rate_rps),
        in_force=first.settings,
        is_feasible_when_idle=True,
        memory=first.memory,
    )


def _slow_state(table: CapacityTable, ahead: Forecast, rate_rps: float) -> CapacityState:
    return CapacityState(
        table=table,
        now_s=10_000.0,
        current=table.entries[3],
        forecast=replace(ahead, rates_rps=np.full(HORIZON_SLOTS, rate_rps)),
        observed_rps=rate_rps,
        is_sla_met=True,
        request_size=1.1,
        costs=tuple(SwitchCost(ready_s=30.0) for _ in table.entries),
        limits=CapacityLimits(max_devices=64),
    )


def _two_days(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Rates of each minute, f8[2880]: a day's wave with noise."""
    minutes = np.arange(2 * DAY_SLOTS)
    wave = 20.0 + 12.0 * np.sin(2 * np.pi * minutes / DAY_SLOTS)
    return np.maximum(0.0, wave + rng.normal(0.0, 1.5, len(minutes)))


# -- the whole tick --------------------------------------------------------------------------------


def _ticks(options: argparse.Namespace, rng: np.random.Generator) -> list[Row]:
    """Ticks of a controller over SQLite: the first keeps the load and chooses forecasters, the
    later ones are as most are."""
    count = options.database_engines
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/gearshift.db"
        settings = ServiceSettings(
            data_dir=Path(folder), database_url=url, run_worker=False, dashboard=False
        )
        database = Database(url)
        upgrade(database.engine)
        with database.begin() as uow:
            recommendation_id = _recommend(uow)
            ids = [_register(uow, number, recommendation_id) for number in range(count)]
        metrics = ServiceMetrics(fresh_s=settings.fresh_s)
        controller = Controller(AppContext(settings=settings, database=database, metrics=metrics))
        _beat(database, ids, rng)
        first = _measured("a tick, the slow loop due for all", count, 1, controller.tick)
        ticks_s: list[float] = []
        for _ in range(options.rounds):
            # Who waits for an engine's answer is not looked at, and an answer is not the loop's.
            _obey(database, ids)
            _beat(database, ids, rng)
            ticks_s += _measured("", count, 1, controller.tick).rounds_s
        controller.stop()
        database.close()
    return [first, Row(name="a tick, as most are", num_engines=count, rounds_s=tuple(ticks_s))]


def _recommend(uow: UnitOfWork) -> str:
    job = uow.jobs.add(spec={}, num_trials=1, created_by="benchmark")
    steps = {"mode": "base", "tokens_up_to": 64, "steps": 900, "seconds": 9.0, "tokens": 50_000}
    return uow.recommendations.add(
        job_id=job.id,
        cost_model_id=None,
        sla=SLA,
        document={
            "settings": _table().entries[0].settings.to_json(),
            "predicted": {"ttft_ms": {"p95": 120.0}, "tpot_ms": {"p95": 12.0}},
            "expected_steps": [steps],
        },
        schedule=None,
        warnings=[],
    ).id


def _register(uow: UnitOfWork, number: int, recommendation_id: str) -> str:
    settings = _table().entries[number % 4].settings
    engine = uow.engines.add(
        EngineRow(
            name=f"engine-{number}",
            model_name="tiny",
            host=f"node-{number}",
            model=model_to_json(MODEL),
            envelope={"max_num_seqs": 512, "max_num_batched_tokens": 8192},
            capabilities=[{"name": ADMISSION_RATE, "class": "hot"}],
            inventory=Inventory(kind=RankKind.PACED, max_ranks=64).to_json(),
            effective_policy=settings.to_json(),
        )
    )
    row = adopt(uow, engine, settings, service_caller("benchmark"), reason="registration")
    engine.recommendation_id, engine.sla = recommendation_id, SLA
    engine.schedule, engine.capacity_table = _schedule().to_json(), _table().to_json()
    # Versions that follow take these over.
    row.document = {**row.document, "sla": SLA}
    row.control = {
        "recommendation_id": recommendation_id,
        "schedule": engine.schedule,
        "capacity_table": engine.capacity_table,
    }
    return engine.id


def _obey(database: Database, ids: list[str]) -> None:
    """Let every engine put in force what is asked of it."""
    caller = service_caller("benchmark")
    with database.begin() as uow:
        for engine in map(uow.engines.get, ids):
            if engine.applied_version != engine.desired_version:
                document = PolicyDocument.from_json(current(uow, engine).document)
                body = Acknowledge(result="applied", policy=document.settings.to_json())
                note_ack(uow, engine, engine.desired_version, body, caller)


def _beat(database: Database, ids: list[str], rng: np.random.Generator) -> None:
    """Three heartbeats of five seconds each, with five requests of 32 tokens."""
    request = {
        "age_ms": 900.0,
        "token_ms": [80.0 + 12.0 * nth for nth in range(32)],
        "input_tokens": 1024,
        "outcome": "completed",
    }
    steps = {"mode": "base", "tokens_up_to": 64, "steps": 100, "seconds": 1.0, "tokens": 5500}
    for _ in range(BEATS):
        windows = [
            Window(
                engine_id=engine_id,
                window_s=5.0,
                arrived=int(rng.poisson(25)),
                stats={},
                requests=[request] * 5,
                steps=[steps],
            )
            for engine_id in ids
        ]
        with database.begin() as uow:
            uow.engines.add_heartbeats(windows)


if __name__ == "__main__":
    main()
