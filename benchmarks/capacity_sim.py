"""Question: does the slow loop meet the SLA with no more devices than the load needs?

Llama-3.1-70B in fp8 on a described 8xH200 node, simulated, one device a replica. The same loads are
served by every number of replicas that holds still, by the slow loop (the service's own
``decide_capacity``, from a capacity table found beforehand), and by an oracle: who knows the
arrivals, asks for capacity as long before as a start takes, and pays the same for it.

    python -m benchmarks.capacity_sim --traces ../shared/traces --out FILE.md
"""

from __future__ import annotations

import argparse
import csv
import math
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from policies.attainment import judge
from policies.capacity_table import CapacityTable, CarriedRate, cheapest
from policies.load_history import SLOT_S, LoadHistory, LoadSlot
from policies.sla import Sla
from tuner.capacity.probe import Asked
from tuner.capacity.table import Standing, entry_of, table_of
from tuner.described.node import Node
from tuner.described.parse import describe_node
from tuner.described.reshape_cost import reshape_seconds
from tuner.simulation.steering import PlannedChanges, Steering
from tuner.simulation.steering_capacity import CapacitySteering
from tuner.workload.parse import parse_workload
from tuner.workload.workload import Workload

DEVICES = 8
CAPS = Caps(max_num_seqs=256, max_num_batched_tokens=1024)
SLA = Sla.parse("p95_ttft_ms<=2000,p95_tpot_ms<=80,attainment>=0.9")
LENGTHS = "input=1024,output=64,input_cv=0.8,output_cv=0.8"
AZURE = "azure2023/AzureLLMInferenceTrace_code.csv"
# A day of these loads takes this long: as many requests as a simulation can be waited for.
DAY_S = 7200.0
# The oracle gives devices back where they are not needed for as long.
ORACLE_CALM_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Load:
    """A workload by name, and how to make it again in another process."""

    name: str
    spec: str
    seed: int

    def workload(self) -> Workload:
        return parse_workload(self.spec, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run, judged. ``device_h`` up to the last arrival."""

    load: str
    served_by: str
    attainment: float
    device_h: float
    ttft_p95_ms: float
    changes: int


def main() -> None:
    """Find the table, simulate, judge, write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, help="the folder of public traces")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--day-s", type=float, default=DAY_S, help="length of the days")
    parser.add_argument("--out", type=Path, help="write the report here too")
    options = parser.parse_args()
    started_s = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(options.jobs) as pool,
    ):
        loads = list_loads(Path(folder), options.traces, options.day_s)
        counts = range(1, DEVICES + 1)
        table = table_of(_sample(), SLA, pool.map(_entry, counts))
        still = [entry.settings for entry in table.entries]
        tasks = [
            *((load, partial(_serve_still, settings)) for load in loads for settings in still),
            *((load, partial(_serve_steered, table)) for load in loads),
            *((load, partial(_serve_oracle, table)) for load in loads),
        ]
        rows = []
        for row in pool.map(_run, tasks):
            rows.append(row)
            print(f"{len(rows)} of {len(tasks)}: {row}", file=sys.stderr, flush=True)
    lines = [*_head(table, options.day_s), *_tables(loads, rows), *_verdict(loads, rows)]
    lines += [f"Simulated in {time.monotonic() - started_s:.0f} s.", ""]
    report = "\n".join(lines)
    print(report)
    if options.out:
        options.out.write_text(report)


def list_loads(folder: Path, traces: Path | None, day_s: float) -> list[Load]:
    """Days by a table of rates, a square wave, a ramp, and the Azure code trace."""
    at = np.arange(0, day_s, 60.0)
    phase = 2 * np.pi * at / day_s
    days = {
        "day of one wave": 2.7 - 2.2 * np.cos(phase),
        "day of two peaks": 2.2 - 1.3 * np.cos(phase) - 0.9 * np.cos(3 * phase),
    }
    loads = [
        Load(name=name, spec=f"servegen:{_rate_table(folder, name, at, rates)}", seed=11 + nth)
        for nth, (name, rates) in enumerate(days.items())
    ]
    half_s = day_s / 4
    loads += [
        Load(
            name="square wave of a minute",
            spec=f"burst:rate=1,peak=4,on_s=60,off_s=60,seconds={half_s},{LENGTHS}",
            seed=13,
        ),
        Load(name="ramp", spec=f"ramp:rate=0.5,to=5,seconds={half_s},{LENGTHS}", seed=14),
        Load(
            name="step",
            spec=f"step:rate=1,to=4,at={half_s / 2},seconds={half_s},{LENGTHS}",
            seed=15,
        ),
    ]
    if traces is not None:
        spec = f"azure:{traces / AZURE},seconds={day_s / 2},max_input=4096,max_output=128"
        loads.append(Load(name="Azure code trace", spec=spec, seed=0))
    return loads


def _rate_table(folder: Path, name: str, at: Sequence[float], rates: Sequence[float]) -> Path:
    path = folder / f"{name.replace(' ', '-')}.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["window_start_s", "rate_rps", "mean_input_tokens", "mean_output_tokens"])
        writer.writerows((s, max(float(r), 0.0), 1024, 64) for s, r in zip(at, rates, strict=True))
    return path


def _node() -> Node:
    return describe_node(model="llama-3.1-70b", hardware="8xh200", dtype="fp8", backend="gearshift")


def _settings(replicas: int) -> Settings:
    return Settings(plan=ParallelPlan(dp=replicas), caps=CAPS)


def _sample() -> Workload:
    return parse_workload(f"poisson:rate=1,seconds=300,{LENGTHS}", seed=1)


def _entry(replicas: int) -> CarriedRate | None:
    node, settings = _node(), _settings(replicas)
    asked = Asked(
        settings=settings,
        run_on=lambda workload, scale, progress: node.simulate(
            settings, workload, step_scale=scale, on_progress=progress
        ),
        workload=_sample(),
        sla=SLA,
        interval=node.hardware.device.interval,
    )
    return entry_of(asked, Standing(settings=settings, factor=float(replicas)), lambda _: None)


def _run(task: tuple[Load, Callable[[Load], Row]]) -> Row:
    load, serve = task
    return serve(load)


def _serve_still(settings: Settings, load: Load) -> Row:
    return _judged(load, f"{settings.plan.dp}", settings, None)


def _serve_steered(table: CapacityTable, load: Load) -> Row:
    node, workload = _node(), load.workload()
    start = cheapest(table, _rates(workload, table).rates_rps[:3].mean()) or table.entries[-1]
    steering = CapacitySteering(
        table=table, model=node.model, devices=DEVICES, start_s=reshape_seconds(node)
    )
    return _judged(load, "slow loop", start.settings, steering)


def _serve_oracle(table: CapacityTable, load: Load) -> Row:
    node, workload = _node(), load.workload()
    rates = _rates(workload, table).rates_rps
    start_s = reshape_seconds(node)(table.entries[0].settings.plan)
    changes = list(_oracle_changes(table, rates, start_s))
    steering = PlannedChanges(changes[1:], reshape_s=reshape_seconds(node))
    return _judged(load, "oracle", changes[0][1], steering)


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


def _rates(workload: Workload, table: CapacityTable) -> LoadHistory:
    """By the minute, in requests of the table's mix."""
    at = np.array([a.arrival_s for a in workload.arrivals])
    slots = []
    for nth in range(int(at[-1] // SLOT_S) + 1):
        inside = np.flatnonzero(at // SLOT_S == nth)
        slots.append(
            LoadSlot(
                start_s=nth * SLOT_S,
                seen_s=SLOT_S,
                requests=len(inside),
                input_tokens=float(workload.input_tokens[inside].sum()),
                output_tokens=float(workload.output_tokens[inside].sum()),
            )
        )
    return LoadHistory.of(slots, mix=table.mix)


def _judged(load: Load, served_by: str, start: Settings, steering: Steering | None) -> Row:
    workload = load.workload()
    result = _node().simulate(
        start, workload, steering=steering, envelope=CAPS, devices=DEVICES if steering else None
    )
    end_s = workload.arrivals[-1].arrival_s
    return Row(
        load=load.name,
        served_by=served_by,
        attainment=judge(SLA, result.measurement).attainment or 0.0,
        device_h=result.device_seconds(end_s) / 3600,
        ttft_p95_ms=result.measurement.ttft_ms.p95 or 0.0,
        changes=len(result.changes),
    )


def _head(table: CapacityTable, day_s: float) -> list[str]:
    known = ", ".join(f"{e.num_devices}: {e.low_rps:.2f}" for e in table.entries)
    return [
        "# Capacity that follows the load, in simulation",
        "",
        f"* {time.strftime('%Y-%m-%d')}, Python {platform.python_version()}; simulated, so other "
        "programs on the machine do not matter.",
        f"* Llama-3.1-70B fp8, 8xH200, one device a replica, backend gearshift, SLA `{SLA}`.",
        f"* Capacity table (devices: requests/s of {table.mix[0]:.0f} + {table.mix[1]:.0f} tokens, "
        f"low end): {known}.",
        "* A start takes what `tuner.described.reshape_cost` says (a guess, no measurement); it "
        "and draining count as device hours of everybody who changes anything.",
        f"* A day is {day_s / 3600:.2g} h long, so that it is over in minutes; a start is not "
        "shortened, which makes following it harder than a real day. No day came before it: "
        "forecasts are of what was seen since the start.",
        "* Repeat: `python -m benchmarks.capacity_sim --traces ../shared/traces "
        f"--day-s {day_s:g} --out FILE.md`",
        "",
    ]


def _tables(loads: Sequence[Load], rows: Sequence[Row]) -> list[str]:
    lines = []
    for load in loads:
        lines += [
            f"## {load.name}",
            "",
            "| served by | attainment | device hours | TTFT p95 ms | changes |",
            "|---|---:|---:|---:|---:|",
            *(
                f"| {row.served_by} | {row.attainment:.1%} | {row.device_h:.2f} "
                f"| {row.ttft_p95_ms:,.0f} | {row.changes} |"
                for row in rows
                if row.load == load.name
            ),
            "",
        ]
    return lines


def _verdict(loads: Sequence[Load], rows: Sequence[Row]) -> list[str]:
    lines = [
        "## Against holding still with as many device hours, and against the oracle",
        "",
        "*Best still* is the best number of replicas that took no more device hours than the slow "
        "loop (rounded up to whole replicas).",
        "",
        "| load | slow loop | best still of equal hours | oracle | hours more than the oracle |",
        "|---|---|---|---|---:|",
    ]
    for load in loads:
        own = {row.served_by: row for row in rows if row.load == load.name}
        loop, oracle = own["slow loop"], own["oracle"]
        still = [row for name, row in own.items() if name.isdigit()]
        one_h = min(row.device_h for row in still)
        equal = [row for row in still if row.device_h <= loop.device_h + one_h / 2]
        best = max(equal, key=lambda row: row.attainment, default=still[0])
        lines.append(
            f"| {load.name} | {loop.attainment:.1%} in {loop.device_h:.2f} h "
            f"| {best.attainment:.1%} in {best.device_h:.2f} h ({best.served_by}) "
            f"| {oracle.attainment:.1%} in {oracle.device_h:.2f} h "
            f"| {loop.device_h / oracle.device_h - 1:+.0%} |"
        )
    return [*lines, ""]


if __name__ == "__main__":
    main()
