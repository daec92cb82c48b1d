"""Question: the rows of ``benchmarks.controller_sim`` with capacity as the lever: what is gained?

Llama-3.1-70B in fp8 on a described 8xH200 node, simulated. Each workload is served by the entry of
a capacity table, of plans of any shape, that is right for the load before (or, in hindsight, for
the first of the very runs that follow), and by the slow loop from the same start, with the node's
other devices free. Steps may be slower than the capacity table was made with.

    python -m benchmarks.controller_capacity --traces ../shared/traces --out FILE.md
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean

from benchmarks.controller_sim import (
    AZURE,
    FIRST_SEED,
    MIX,
    SCALES,
    SLAS,
    TOLERANCE,
    Scenario,
    list_scenarios,
)
from engine.spec.settings import Caps
from policies.attainment import judge
from policies.capacity_state import HOUR_S, CapacityLimits
from policies.capacity_table import CapacityTable, CarriedRate, cheapest
from policies.load_history import rate_of
from policies.sla import Sla
from tuner.described.node import Node
from tuner.described.parse import describe_node
from tuner.described.reshape_cost import reshape_seconds
from tuner.planner.capacity_table import find_table as find_carried
from tuner.planner.planner import make_plan
from tuner.simulation.steering_capacity import CapacitySteering
from tuner.workload.parse import parse_workload
from tuner.workload.workload import Workload

DEVICES = 8
SAMPLE = f"poisson:rate=1,seconds=300,{MIX}"
# The trace's table is of the part of it that no run serves.
UNSERVED = "start=2100"
# As much of a sample makes a table.
SAMPLE_S = 300.0
NAME = "llama-3.1-70b fp8, 8xh200, gearshift"


@dataclass(frozen=True, kw_only=True)
class Served:
    """One run, judged."""

    attainment: float
    is_met: bool
    device_h: float
    changes: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """A scenario under one SLA: runs of an entry that holds still, and the slow loop's.

    ``is_feasible``: whether any entry of the table, holding still, meets the SLA in every run.
    """

    scenario: str
    tuned: str
    start: CarriedRate
    scale: float
    is_feasible: bool
    still: tuple[Served, ...]
    steered: tuple[Served, ...]

    @property
    def gain(self) -> float:
        """Mean attainment of the slow loop less that of holding still."""
        return fmean(s.attainment for s in self.steered) - fmean(s.attainment for s in self.still)


def main() -> None:
    """Find the tables, simulate, judge, write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=Path, help="the folder of public traces")
    parser.add_argument("--seeds", type=int, default=3, help="runs per synthetic scenario")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--table", type=Path, help="read capacity tables here, or keep them here")
    parser.add_argument("--out", type=Path, help="write the report here too")
    options = parser.parse_args()
    started_s = time.monotonic()
    scenarios = list_scenarios(options.traces, options.seeds)
    tables = {
        (text, sample): find_table(text, sample, options.table)
        for text in SLAS
        for sample in {_sample(scenario, options.traces): None for scenario in scenarios}
    }
    tasks = [
        (tables[text, _sample(scenario, options.traces)], scenario)
        for text in SLAS
        for scenario in scenarios
    ]
    rows: list[tuple[CapacityTable, list[Row]]] = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for (table, _), found in zip(
            tasks, pool.map(list_rows, *zip(*tasks, strict=True)), strict=True
        ):
            rows.append((table, found))
            print(*(_cells(row) for row in found), sep="\n", file=sys.stderr, flush=True)
    lines = [*_head(options.seeds)]
    for text in SLAS:
        sla = Sla.parse(text)
        own = [row for known, found in rows if known.sla == sla for row in found]
        told = [
            _told(table, sample.rsplit("/", 1)[-1])
            for (asked, sample), table in tables.items()
            if asked == text
        ]
        lines += [f"## SLA `{text}`", "", *told, "", *_table(own), ""]
    lines += _verdict([row for _, found in rows for row in found])
    lines += [f"Simulated in {time.monotonic() - started_s:.0f} s.", ""]
    report = "\n".join(lines)
    print(report)
    if options.out:
        options.out.write_text(report)


def _sample(scenario: Scenario, traces: Path | None) -> str:
    """The load that a scenario's table is found with."""
    if traces is not None and scenario.specs[0].startswith("azure:"):
        return f"azure:{traces / AZURE},{UNSERVED}"
    return SAMPLE


def find_table(text: str, asked_sample: str, kept: Path | None) -> CapacityTable:
    """The one that the planner makes: of all plans of the node that are worth having, of whatever
    shape. Read from ``kept`` where it is there, else kept there."""
    inputs = {"node": NAME, "sla": text, "sample": [asked_sample, 1], "seconds": SAMPLE_S}
    tables = json.loads(kept.read_text()) if kept is not None and kept.exists() else []
    for known in tables:
        if known["inputs"] == inputs:
            return CapacityTable.from_json(known["table"])
    whole = parse_workload(asked_sample, seed=1)
    arrivals = tuple(a for a in whole.arrivals if a.arrival_s < SAMPLE_S)
    workload = replace(whole, arrivals=arrivals)
    report = make_plan(_node(), workload, Sla.parse(text), jobs=1)
    table = find_carried(report, jobs=1)
    print(_told(table, asked_sample), file=sys.stderr, flush=True)
    if kept is not None:
        tables.append({"inputs": inputs, "table": table.to_json()})
        kept.write_text(json.dumps(tables, indent=1))
    return table


def list_rows(table: CapacityTable, scenario: Scenario) -> list[Row]:
    """One scenario, tuned before and in hindsight; the latter with slower steps too."""
    node = _node()
    workloads = [
        parse_workload(spec, seed=seed)
        for seed, spec in enumerate(scenario.specs, start=FIRST_SEED)
    ]
    before = parse_workload(scenario.before, seed=1000)

    @cache
    def still(number: int, run: int, scale: float) -> Served:
        entry = table.entries[number]
        return _serve(node, table, entry, workloads[run], scale, is_steered=False)

    @cache
    def steered(number: int, run: int, scale: float) -> Served:
        entry = table.entries[number]
        return _serve(node, table, entry, workloads[run], scale, is_steered=True)

    def all_still(number: int, scale: float) -> tuple[Served, ...]:
        return tuple(still(number, run, scale) for run in range(len(workloads)))

    def is_feasible(scale: float) -> bool:
        numbers = range(len(table.entries) - 1, -1, -1)
        met_once = (number for number in numbers if still(number, 0, scale).is_met)
        return any(all(s.is_met for s in all_still(number, scale)) for number in met_once)

    rows = []
    for tuned, scales in (("before", SCALES[:1]), ("in hindsight", SCALES)):
        if tuned == "before":
            number = table.entries.index(cheapest(table, _rate(before, table)) or table.entries[-1])
        else:
            number = _best([still(n, 0, SCALES[0]) for n in range(len(table.entries))])
        start = table.entries[number]
        for scale in scales:
            row = Row(
                scenario=scenario.name,
                tuned=tuned,
                start=start,
                scale=scale,
                is_feasible=is_feasible(scale),
                still=all_still(number, scale),
                steered=tuple(steered(number, run, scale) for run in range(len(workloads))),
            )
            rows.append(row)
    return rows


def _best(runs: Sequence[Served]) -> int:
    """The fewest devices that meet the SLA; else the highest attainment."""
    met = [number for number, served in enumerate(runs) if served.is_met]
    return met[0] if met else max(range(len(runs)), key=lambda number: runs[number].attainment)


def _rate(load: Workload, table: CapacityTable) -> float:
    """Of requests of the table's mix."""
    tokens = rate_of(float(load.input_tokens.sum()), float(load.output_tokens.sum()), table.mix)
    return tokens / load.span_s


def _serve(
    node: Node,
    table: CapacityTable,
    start: CarriedRate,
    workload: Workload,
    scale: float,
    *,
    is_steered: bool,
) -> Served:
    steering = None
    if is_steered:
        steering = CapacitySteering(
            table=table,
            model=node.model,
            devices=DEVICES,
            start_s=reshape_seconds(node),
            limits=CapacityLimits(max_devices=DEVICES),
        )
    result = node.simulate(
        start.settings,
        workload,
        step_scale=scale,
        steering=steering,
        envelope=_envelope(table) if is_steered else start.settings.caps,
        devices=DEVICES if is_steered else None,
    )
    report = judge(table.sla, result.measurement)
    end_s = workload.arrivals[-1].arrival_s
    return Served(
        attainment=report.attainment or 0.0,
        is_met=report.is_met,
        device_h=result.device_seconds(end_s) / HOUR_S,
        changes=len(result.changes),
    )


def _envelope(table: CapacityTable) -> Caps:
    """Within which every entry's caps lie."""
    caps = [entry.settings.caps for entry in table.entries]
    return Caps(
        max_num_seqs=max(c.max_num_seqs for c in caps),
        max_num_batched_tokens=max(c.max_num_batched_tokens for c in caps),
    )


def _node() -> Node:
    return describe_node(model="llama-3.1-70b", hardware="8xh200", dtype="fp8", backend="gearshift")


def _head(num_seeds: int) -> list[str]:
    return [
        "# The controller in simulation, with capacity as its lever",
        "",
        f"* {time.strftime('%Y-%m-%d')}, Python {platform.python_version()}; simulated, so other "
        "programs on the machine do not matter.",
        f"* Llama-3.1-70B fp8, 8xH200, backend gearshift; {num_seeds} runs (seeds {FIRST_SEED} to "
        f"{FIRST_SEED + num_seeds - 1}) per synthetic load, two slices of the Azure code trace: "
        "the loads of `benchmarks.controller_sim`.",
        "* Capacity tables are the planner's, of all plans of the node that are worth having.",
        "* Both start from the same plan: *before*, the one of fewest devices that carries the "
        "load that comes first; *in hindsight*, the one of fewest devices that meets the SLA on "
        "the first of the very runs (where none does, the one that attains most).",
        "* The slow loop is the live one (`policies.capacity_loop.decide_capacity`) with the "
        "service's defaults, and has no history when a run begins. A start takes what "
        "`tuner.described.reshape_cost` says (a guess).",
        "* *Slower* steps take 25 % longer than those that tables were made with.",
        "* Repeat: `python -m benchmarks.controller_capacity --traces ../shared/traces --out "
        "FILE.md`",
        "",
    ]


def _told(table: CapacityTable, sample: str) -> str:
    known = ", ".join(f"{e.settings.plan}: {e.low_rps:.2f}" for e in table.entries)
    return f"* `{sample}`; plans, and requests/s carried, low end: {known}."


def _table(rows: Sequence[Row]) -> list[str]:
    lines = [
        "Means over the runs, holding still / slow loop.",
        "",
        "| load | tuned | start | steps | any plan meets | attainment | gain "
        "| device hours | changes |",
        "|---|---|---|---|---|---|---:|---|---:|",
    ]
    return [*lines, *map(_cells, rows)]


def _cells(row: Row) -> str:
    both = (row.still, row.steered)
    cells = (
        row.scenario,
        row.tuned,
        f"{row.start.settings.plan}",
        "as expected" if row.scale == 1 else "slower",
        "yes" if row.is_feasible else "no",
        " / ".join(f"{fmean(s.attainment for s in runs):.1%}" for runs in both),
        f"{100 * row.gain:+.1f}",
        " / ".join(f"{fmean(s.device_h for s in runs):.2f}" for runs in both),
        f"{fmean(s.changes for s in row.steered):.1f}",
    )
    return f"| {' | '.join(cells)} |"


def _verdict(rows: Sequence[Row]) -> list[str]:
    feasible = [row for row in rows if row.is_feasible]
    better = [row for row in rows if row.gain > TOLERANCE]
    worse = [row for row in rows if row.gain < -TOLERANCE]
    lines = [
        "## Better than holding still?",
        "",
        f"* {len(rows)} rows, in {len(feasible)} of which any plan of the table meets the SLA in "
        "every run.",
        f"* By more than {100 * TOLERANCE:.0f} point of mean attainment the slow loop is better in "
        f"{len(better)} ({sum(row in feasible for row in better)} of those), worse in "
        f"{len(worse)}.",
        f"* The worst row: {100 * min(row.gain for row in rows):+.1f} points.",
    ]
    lines += [f"* Worse: {row.scenario}, tuned {row.tuned}, x{row.scale:g}" for row in worse]
    return [*lines, ""]


if __name__ == "__main__":
    main()
