"""Ways to serve a load whose rate changes: replicas that hold still, the slow loop, an oracle.

An engine is the simulated one, or its stand-in, a queue (:mod:`benchmarks.queue_engine`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from enum import StrEnum
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.capacity_causes import Paths
from benchmarks.capacity_loads import Load, rates_of
from benchmarks.capacity_report import LOOP, LOOP_AFTER, ORACLE, Row
from benchmarks.queue_engine import QueueEngine, queue_table
from benchmarks.replica_table import Replicas, table_from
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from policies.attainment import judge
from policies.capacity_state import HOUR_S, CapacityLimits
from policies.capacity_table import CapacityTable, cheapest
from policies.forecast import choose, forecast
from policies.forecasters import FORECASTERS, Forecaster, SeasonalNaive
from policies.load_history import DAY_S, SLOT_S, LoadHistory
from policies.shedding import SheddingLimits
from policies.sla import Sla
from tuner.described.node import Node
from tuner.described.parse import describe_node
from tuner.described.reshape_cost import reshape_seconds
from tuner.simulation.steering import PlannedChanges, Steering
from tuner.simulation.steering_capacity import HORIZON_SLOTS, CapacitySteering
from tuner.workload.workload import Workload

DEVICES = 8
CAPS = Caps(max_num_seqs=256, max_num_batched_tokens=2048)
SLA = Sla.parse("p95_ttft_ms<=5000,p95_tpot_ms<=100,attainment>=0.9")
# The oracle gives devices back where they are not needed for as long, and may hold more or less
# than the minutes bring.
ORACLE_CALM_S = 300.0
ORACLE_SHARES = (0.75, 0.9, 1.05, 1.2)
# What an engine may change in an hour of a real day.
PER_H = 4
# Of a day that is an hour long an hour is too short to tell a level by: ten minutes are taken.
LEVEL_SHARE = 1 / 6


class ServedOn(StrEnum):
    """What stands for the engine."""

    SIMULATED = "simulated"
    QUEUE = "queue"

    def table(self, sample: str, kept: Path | None) -> CapacityTable:
        """What each number of replicas carries of ``sample``."""
        if self is ServedOn.QUEUE:
            return queue_table(SLA, most=DEVICES, caps=CAPS, interval=_interval())
        return table_from(asked_table(sample), kept)

    def serve(self, start: Settings, workload: Workload, steering: Steering | None) -> Any:
        """A run to its end: its ``measurement``, ``changes``, ``device_spells`` and
        ``device_seconds``."""
        if self is ServedOn.QUEUE:
            engine = QueueEngine(settings=start, workload=workload, steering=steering)
            engine.to_the_end()
            return engine
        return _node().simulate(
            start, workload, steering=steering, envelope=CAPS, devices=DEVICES if steering else None
        )


def asked_table(sample: str) -> Replicas:
    """One device a replica."""
    return Replicas(
        name="llama-3.1-70b fp8, 8xh200, gearshift",
        node=_node(),
        of_one=Settings(plan=ParallelPlan(dp=1), caps=CAPS),
        most=DEVICES,
        sla=SLA,
        sample=sample,
    )


def _node() -> Node:
    return describe_node(model="llama-3.1-70b", hardware="8xh200", dtype="fp8", backend="gearshift")


def _interval() -> float:
    return _node().hardware.device.interval


def serve_still(served_on: ServedOn, replicas: int, table: CapacityTable, load: Load) -> Row:
    settings = Settings(plan=ParallelPlan(dp=replicas), caps=CAPS)
    return _judged(served_on, load, f"{settings.plan.dp}", settings, None, table)


def serve_steered(
    served_on: ServedOn,
    day_s: float,
    has_past: bool,
    forecasters: Sequence[Forecaster] | None,
    table: CapacityTable,
    load: Load,
) -> Row:
    """``has_past``: days like it came before, and chose the first entry; the seasonal forecaster
    takes such a day for one. ``forecasters`` to choose from without such days; None: all."""
    node, workload = _node(), load.workload()
    rate_rps = float(rates_of(workload, table).rates_rps[:3].mean())
    past = None
    if has_past:
        days = [rates_of(day, table) for day in load.past()]
        past, forecasters = reduce(LoadHistory.before, days), squeezed(len(days[0]) * SLOT_S)
        chosen = choose(past, HORIZON_SLOTS, forecasters=forecasters)
        if (ahead := forecast(past, HORIZON_SLOTS, chosen=chosen)) is not None:
            rate_rps = max(rate_rps, ahead.peak_rps(CapacityLimits.chance))
    start = cheapest(table, rate_rps) or table.entries[-1]
    # An hour of a day that is twelve times as short has twelve times as many changes.
    per_h = math.ceil(PER_H * max(1.0, DAY_S / day_s))
    # The stand-in turns nobody away.
    shedding = SheddingLimits(is_allowed=served_on is ServedOn.SIMULATED)
    steering = CapacitySteering(
        table=table,
        model=node.model,
        devices=DEVICES,
        start_s=reshape_seconds(node),
        limits=CapacityLimits(max_devices=DEVICES, max_per_h=per_h, shedding=shedding),
        past=past,
        forecasters=forecasters,
    )
    name = LOOP_AFTER if has_past else LOOP
    return _judged(served_on, load, name, start.settings, steering, table)


def squeezed(period_s: float) -> Sequence[Forecaster]:
    """Our forecasters, where a day is only ``period_s`` long."""
    day = SeasonalNaive(period_s=period_s, level_s=period_s * LEVEL_SHARE)
    return [day if isinstance(f, SeasonalNaive) else f for f in FORECASTERS]


def serve_oracle(served_on: ServedOn, share: float, table: CapacityTable, load: Load) -> Row:
    """``share`` of what the minutes bring."""
    node, workload = _node(), load.workload()
    rates = rates_of(workload, table).rates_rps * share
    start_s = reshape_seconds(node)(table.entries[0].settings.plan)
    changes = list(_oracle_changes(table, rates, start_s))
    steering = PlannedChanges(changes[1:], reshape_s=reshape_seconds(node))
    return _judged(served_on, load, f"{ORACLE} x{share:g}", changes[0][1], steering, table)


def _oracle_changes(
    table: CapacityTable, rates: np.ndarray, start_s: float
) -> Iterator[tuple[float, Settings]]:
    """The entry that each minute needs, and those until a start would be over; devices are given
    back where they are not needed for ``ORACLE_CALM_S``."""
    ahead = math.ceil(start_s / SLOT_S) + 1
    calm = math.ceil(ORACLE_CALM_S / SLOT_S)
    now: Settings | None = None
    for nth in range(len(rates)):
        due = _entry_for(table, rates[nth : nth + ahead])
        if now is not None and due.plan.world_size < now.plan.world_size:
            due = _entry_for(table, rates[nth : nth + calm])
            if due.plan.world_size >= now.plan.world_size:
                continue
        if due != now:
            yield nth * SLOT_S + (0.001 if nth else 0.0), due
            now = due


def _entry_for(table: CapacityTable, rates: np.ndarray) -> Settings:
    found = cheapest(table, float(np.max(rates))) or table.entries[-1]
    return found.settings


def _judged(
    served_on: ServedOn,
    load: Load,
    served_by: str,
    start: Settings,
    steering: Steering | None,
    table: CapacityTable,
) -> Row:
    workload = load.workload()
    result = served_on.serve(start, workload, steering)
    end_s = workload.arrivals[-1].arrival_s
    sizes = [start.plan.dp, *(c.change.settings.plan.dp for c in result.changes)]
    turns = steering.turns if isinstance(steering, CapacitySteering) else ()
    paths = Paths.of(result.device_spells, start.plan.dp, result.changes, turns, table)
    return Row(
        load=load.name,
        served_by=served_by,
        attainment=judge(SLA, result.measurement).attainment or 0.0,
        device_h=result.device_seconds(end_s) / HOUR_S,
        ttft_p95_ms=result.measurement.ttft_ms.p95 or 0.0,
        sizes=tuple(sizes),
        paths=None if steering is None else asdict(paths),
    )


def rates_by_minute(load: Load, table: CapacityTable) -> Sequence[float]:
    """Of requests of the table's mix."""
    return [float(rate) for rate in rates_of(load.workload(), table).rates_rps]
