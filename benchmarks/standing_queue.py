"""Question: is a queue that stands when shedding begins worked off, and if the table is wrong?

Llama-3.1-70B in fp8 on a described 8xH200 node, simulated: one plan, and the slow loop at its door
with a capacity table of just that plan, so nothing helps but turning requests away. More comes than
the engine ends when it never rests from the first second on, at once as much as takes some time to
serve. The table says that a share of this rate is carried, which may be above 1.

    python -m benchmarks.standing_queue --table KEPT.json --out FILE.md
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.controller_sim import MIX, SLAS
from benchmarks.replica_table import Replicas, table_from
from benchmarks.reporting import publish
from engine.spec.measurement import Outcome, RequestTiming
from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from policies.attainment import meets
from policies.capacity_state import CapacityLimits
from policies.capacity_table import CapacityTable, CarriedRate
from policies.sla import Sla
from tuner.described.node import Node
from tuner.described.parse import describe_node
from tuner.described.reshape_cost import reshape_seconds
from tuner.simulation.steering_capacity import CapacitySteering
from tuner.workload.parse import parse_workload
from tuner.workload.workload import Workload

DEVICES = 8
SAMPLE = f"poisson:rate=1,seconds=300,{MIX}"
OF_ONE = Settings(plan=ParallelPlan(tp=4), caps=Caps(max_num_seqs=128, max_num_batched_tokens=512))
SLA = Sla.parse(SLAS[0])
TABLE_SHARES = (0.5, 0.75, 1.0, 1.25, 1.5)
LOADS = (1.2, 2.0)
QUEUES_S = (0.0, 20.0)
SECONDS, SLOT_S, LATE_S = 420.0, 30.0, 240.0
# Requests at once to find what is finished when an engine never rests.
FLOOD = 400
WELL = 0.9


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run. ``settled_s``: from when on at least ``WELL`` of those let in met the SLA in each
    half minute (None: never). ``late``: attainment of those let in after ``LATE_S``, and
    ``late_rps`` how many of them a second met it."""

    settled_s: float | None
    whole: float
    late: float
    late_rps: float
    refused: float


def main() -> None:
    """Find what is carried, overload it, print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, help="read the capacity table here, or keep it here")
    parser.add_argument("--queues-s", type=float, nargs="+", default=QUEUES_S)
    parser.add_argument("--loads", type=float, nargs="+", default=LOADS)
    parser.add_argument("--tables", type=float, nargs="+", default=TABLE_SHARES)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the report here too")
    options = parser.parse_args()
    node = describe_node(model="llama-3.1-70b", hardware="8xh200", dtype="fp8", backend="gearshift")
    entry = _entry(node, options.table)
    finished_rps = _finished_rps(node, entry.settings)
    lines = _head(entry, finished_rps, options.seed)
    for queue_s in options.queues_s:
        for load in options.loads:
            workload = _workload(load * finished_rps, queue_s * finished_rps, options.seed)
            for share in options.tables:
                row = _row(_serve(node, entry, share * finished_rps, workload))
                lines.append(_cells(queue_s, load, share, row, finished_rps))
                print(lines[-1], flush=True)
    text = "\n".join([*lines, ""])
    publish(text, options.out)


def _entry(node: Node, kept: Path | None) -> CarriedRate:
    asked = Replicas(
        name="llama-3.1-70b fp8, 8xh200, gearshift",
        node=node,
        of_one=OF_ONE,
        most=DEVICES // OF_ONE.plan.world_size,
        sla=SLA,
        sample=SAMPLE,
    )
    return table_from(asked, kept).entries[-1]


def _finished_rps(node: Node, settings: Settings) -> float:
    """Requests a second that end while others wait: from the first quarter's end to the last's."""
    sample = _workload(float(FLOOD), 0.0, seed=2)
    flood = replace(
        sample, arrivals=tuple(replace(a, arrival_s=0.0) for a in sample.arrivals[:FLOOD])
    )
    ends = sorted(t.token_s[-1] for t in node.simulate(settings, flood).measurement.timings)
    first, last = FLOOD // 4, 3 * FLOOD // 4
    return (last - first) / (ends[last] - ends[first])


def _workload(rate_rps: float, at_once: float, seed: int) -> Workload:
    """``at_once`` requests come in the first seconds, then ``rate_rps`` a second."""
    spec = f"poisson:rate={rate_rps:g},seconds={SECONDS + at_once / rate_rps:g},{MIX}"
    whole = parse_workload(spec, seed=seed)
    count = round(at_once)
    if not count:
        return whole
    begin_s = whole.arrivals[count].arrival_s
    first = [replace(a, arrival_s=n / count) for n, a in enumerate(whole.arrivals[:count])]
    rest = [replace(a, arrival_s=1 + a.arrival_s - begin_s) for a in whole.arrivals[count:]]
    return replace(whole, arrivals=(*first, *rest))


def _serve(
    node: Node, entry: CarriedRate, table_rps: float, workload: Workload
) -> Sequence[RequestTiming]:
    believed = replace(entry, rate_rps=table_rps, low_rps=table_rps, high_rps=table_rps)
    sample = parse_workload(SAMPLE, seed=1)
    table = CapacityTable(
        sla=SLA,
        mean_input_tokens=float(sample.input_tokens.mean()),
        mean_output_tokens=float(sample.output_tokens.mean()),
        entries=(believed,),
    )
    steering = CapacitySteering(
        table=table,
        model=node.model,
        devices=DEVICES,
        start_s=reshape_seconds(node),
        limits=CapacityLimits(max_devices=DEVICES),
    )
    result = node.simulate(
        entry.settings,
        workload,
        steering=steering,
        envelope=entry.settings.caps,
        devices=DEVICES,
    )
    return result.measurement.timings


def _row(timings: Sequence[RequestTiming]) -> Row:
    let_in = [t for t in timings if t.outcome is Outcome.COMPLETED]
    settled_s: float | None = None
    for nth in reversed(range(round(SECONDS / SLOT_S))):
        slot = [t for t in let_in if nth * SLOT_S <= t.scheduled_s < (nth + 1) * SLOT_S]
        if slot and _attainment(slot) < WELL:
            break
        settled_s = nth * SLOT_S
    late = [t for t in let_in if t.scheduled_s >= LATE_S]
    attainment = _attainment(late)
    return Row(
        settled_s=settled_s,
        whole=_attainment(let_in),
        late=attainment,
        late_rps=attainment * len(late) / (SECONDS - LATE_S),
        refused=1 - len(let_in) / len(timings),
    )


def _attainment(timings: Sequence[RequestTiming]) -> float:
    met = sum(meets(SLA, timing) is True for timing in timings)
    return met / len(timings) if timings else 0.0


def _head(entry: CarriedRate, finished_rps: float, seed: int) -> list[str]:
    return [
        "# A queue that stands when requests begin to be turned away",
        "",
        f"* {time.strftime('%Y-%m-%d')}, Python {platform.python_version()}; simulated, so other "
        "programs on the machine do not matter.",
        f"* Llama-3.1-70B fp8, 8xH200, backend gearshift, {entry.settings.plan}, {MIX}; SLA "
        f"`{SLA}`. It carries {entry.low_rps:.2f} requests/s within the SLA (low end), and ends "
        f"{finished_rps:.2f} when it never rests.",
        f"* Poisson arrivals for {SECONDS:g} s, at so many times what it ends, seed {seed}; "
        "*queue*: as many requests as take so long to serve come in the first second.",
        "* *Table*: what the loop believes to be carried, over what it ends. *Well from*: from "
        f"then on at least {WELL:g} of those let in meet the SLA in each half minute.",
        f"* *Late*: after {LATE_S:g} s; *met/s*: of these, over what it ends.",
        "",
        "| queue, s | load | table | well from, s | met, of all let in | met, of those late "
        "| late met/s | refused |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]


def _cells(queue_s: float, load: float, share: float, row: Row, finished_rps: float) -> str:
    settled = "never" if row.settled_s is None else f"{row.settled_s:.0f}"
    return (
        f"| {queue_s:g} | x{load:g} | x{share:g} | {settled} | {row.whole:.3f} | {row.late:.3f} "
        f"| {row.late_rps / finished_rps:.2f} | {row.refused:.0%} |"
    )


if __name__ == "__main__":
    main()
