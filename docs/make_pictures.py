"""The pictures of the explanations, made from simulations and dated reports: ``make pictures``.

The same code gives the same bytes. Each picture is small, and its page says what made it.
"""

from __future__ import annotations

import csv
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from engine.spec.plan import ParallelPlan
from engine.spec.settings import Caps, Settings
from gearshift import capacity, simulate
from policies.capacity_table import CapacityTable, cheapest
from policies.sla import Sla
from tuner.capacity.probe import CapacityQuestion
from tuner.capacity.table import Standing, entry_of, table_of
from tuner.described.node import Node
from tuner.described.parse import describe_node
from tuner.described.reshape_cost import reshape_seconds
from tuner.pictures.draw import draw
from tuner.pictures.over_time import attainment_panel
from tuner.pictures.picture import Axis, Cloud, Colour, Limit, Line, Panel, Picture, Point, Symbol
from tuner.pictures.steps import mode_times_panel, pieces_panel, scaling_panels
from tuner.simulation.simulate import SimulationResult
from tuner.simulation.steering_capacity import CapacitySteering
from tuner.simulation.timeline import build_timeline
from tuner.workload.parse import parse_workload
from tuner.workload.workload import Workload

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "pictures"
ERRORS = ROOT / "benchmarks" / "reports" / "2026-12-01-end-to-end.md"
MODEL, NODE = "llama-3.1-70b", "8xh200"
BURSTS = "burst:rate=1,peak=8,on_s=10,off_s=20,seconds=90,input=2048,output=128"
SLA = "p95_ttft_ms<=2000,p95_tpot_ms<=60"
# The day of the slow loop, shortened to half an hour.
DAY_S = 1800.0
DAY_NODE = "4xh200"
DAY_DEVICES = 4
DAY_CAPS = Caps(max_num_seqs=256, max_num_batched_tokens=1024)
DAY_SLA = Sla.parse("p95_ttft_ms<=2000,p95_tpot_ms<=80,attainment>=0.9")
DAY_LENGTHS = "input=1024,output=64,input_cv=0.8,output_cv=0.8"


def main() -> None:
    """Make those that are named on the command line, or all."""
    makers = {
        "modes.svg": modes,
        "shift-over-time.svg": shift_over_time,
        "pieces.svg": pieces,
        "held-out.svg": held_out,
        "capacity.svg": carried,
        "slow-loop.svg": slow_loop,
    }
    for name in sys.argv[1:] or makers:
        draw(FOLDER / name, makers[name]())
        print(f"{name}: {(FOLDER / name).stat().st_size / 1e3:.0f} kB")


def _shifted(workload: str) -> object:
    return simulate(
        MODEL, dtype="fp8", hardware=NODE, backend="gearshift", plan="sp=8,shift=512",
        workload=workload, sla=SLA, seed=1,
    )  # fmt: skip


def modes() -> Picture:
    """How long a step takes on each rung, over its tokens."""
    run = _shifted("poisson:rate=4,input=1024,output=64,requests=40")
    return Picture(
        title="One step of Llama-3.1-70B in fp8 on 8xH200, sp=8, on each rung of its ladder",
        facts=run.title.parts[:1],
        panels=(mode_times_panel(run.document["steps"]["modes"]),),
    )


def shift_over_time() -> Picture:
    """A bursty load, what requests saw, and which modes the steps ran in."""
    run = _shifted(BURSTS)
    whole = run.picture()
    wanted = ("load", "TTFT", "TPOT", "step time")
    panels = [panel for panel in whole.panels if panel.y.label.startswith(wanted)]
    return replace(whole, panels=tuple(panels))


def pieces() -> Picture:
    """Where the time of a step goes, and how that changes with the degree of TP."""
    run = _shifted("poisson:rate=4,input=1024,output=64,requests=40")
    steps = run.document["steps"]
    return Picture(
        title="Where a step's time goes: Llama-3.1-70B in fp8 on 8xH200",
        facts=run.title.parts[:1],
        panels=(pieces_panel(steps["pieces"]), *scaling_panels(steps["scaling"])),
    )


def carried() -> Picture:
    """P(SLA met) and latency over the load."""
    found = capacity(
        "llama-3.1-8b", hardware="1xh100", plan="tp=1", sla="p95_ttft_ms<=500,p95_tpot_ms<=30",
        workload="poisson:rate=30,input=1024,output=128,seconds=15", draws=3,
    )  # fmt: skip
    return found.picture()


def held_out() -> Picture:
    """Median errors of served runs by group, from the dated report."""
    rows = list(_rows(ERRORS.read_text()))
    names = tuple(row[0] for row in rows)
    clouds = [
        Cloud(
            label=f"{what}: median, and 90 % of the runs",
            points=tuple(
                Point(
                    x=nth + shift,
                    y=float(row[at].rstrip("%")),
                    y_ends=(0.0, float(row[at + 1].rstrip("%"))),
                    texts=(),
                )
                for nth, row in enumerate(rows)
            ),
            colour=colour,
            symbol=symbol,
        )
        for what, at, shift, colour, symbol in (
            ("TTFT", 2, -0.1, Colour.BLUE, Symbol.DISC),
            ("TPOT", 5, 0.1, Colour.ORANGE, Symbol.RING),
        )
    ]
    panel = Panel(
        x=Axis.of_names("group, held out as a whole", names),
        y=Axis(label="error, %", low=0.0, high=100.0),
        clouds=tuple(clouds),
    )
    return Picture(
        title="541 published serving runs, each simulated by a fit that never saw its group",
        facts=(f"from {ERRORS.relative_to(ROOT)}",),
        panels=(panel,),
    )


def _rows(report: str) -> Iterator[list[str]]:
    section = report.partition("## Groups, each held out")[2].partition("\n## ")[0]
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if re.fullmatch(r"[\d.]+%", cells[2] if len(cells) > 2 else ""):
            yield cells


def slow_loop() -> Picture:
    """A short day on four devices, followed by the service's own slow loop."""
    node = describe_node(model=MODEL, hardware=DAY_NODE, dtype="fp8", backend="gearshift")
    with tempfile.TemporaryDirectory() as folder:
        workload = _day(Path(folder))
    table = _table(node)
    steering = CapacitySteering(
        table=table, model=node.model, devices=DAY_DEVICES, start_s=reshape_seconds(node)
    )
    start = (cheapest(table, 1.0) or table.entries[-1]).settings
    result = node.simulate(
        start, workload, steering=steering, envelope=DAY_CAPS, devices=DAY_DEVICES
    )
    timeline = build_timeline(result.measurement)
    return Picture(
        title="A day in half an hour, and the slow loop of the control plane",
        facts=(f"{MODEL} in fp8 on {DAY_NODE}, one device a replica; SLA {DAY_SLA}; simulated",),
        panels=(
            _load_panel(workload, result, table, start),
            attainment_panel(result.measurement, timeline, DAY_SLA),
        ),
    )


def _day(folder: Path) -> Workload:
    """Two peaks, by the minute."""
    at = np.arange(0, DAY_S, 60.0)
    phase = 2 * np.pi * at / DAY_S
    rates = 2.2 - 1.3 * np.cos(phase) - 0.9 * np.cos(3 * phase)
    path = folder / "day.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["window_start_s", "rate_rps", "mean_input_tokens", "mean_output_tokens"])
        writer.writerows((s, max(float(r), 0.0), 1024, 64) for s, r in zip(at, rates, strict=True))
    return parse_workload(f"servegen:{path}", seed=11)


def _table(node: Node) -> CapacityTable:
    """What one replica carries is searched, and taken times their number: they share nothing."""
    sample = parse_workload(f"poisson:rate=1,seconds=120,{DAY_LENGTHS}", seed=1)
    settings = Settings(plan=ParallelPlan(), caps=DAY_CAPS)
    asked = CapacityQuestion(
        settings=settings,
        run_on=lambda workload, scale, progress: node.simulate(
            settings, workload, step_scale=scale, on_progress=progress
        ),
        workload=sample,
        sla=DAY_SLA,
        interval=node.hardware.device.interval,
    )
    one = entry_of(asked, Standing(settings=settings, factor=1.0), lambda _: None)
    assert one is not None, "one device carries something"
    entries = [
        replace(
            one,
            settings=Settings(plan=ParallelPlan(dp=n), caps=DAY_CAPS),
            rate_rps=n * one.rate_rps,
            low_rps=n * one.low_rps,
            high_rps=None if one.high_rps is None else n * one.high_rps,
        )
        for n in range(1, DAY_DEVICES + 1)
    ]
    return table_of(sample, DAY_SLA, entries)


def _load_panel(
    workload: Workload, result: SimulationResult, table: CapacityTable, start: Settings
) -> Panel:
    """Requests a second by the minute, and what the entry in force carries."""
    arrivals = np.array([arrival.arrival_s for arrival in workload.arrivals])
    counts = np.bincount((arrivals // 60).astype(int)) / 60
    minutes = tuple(60.0 * nth for nth in range(len(counts)))
    held = [(0.0, start), *((each.in_force_s, each.change.settings) for each in result.changes)]
    low = {entry.settings.plan: entry.low_rps for entry in table.entries}
    ends = (*(at for at, _ in held), float(arrivals[-1]))
    rates = [low[settings.plan] for _, settings in held]
    high = 1.1 * max(*rates, *counts)
    return Panel(
        x=Axis(label="seconds", low=0.0, high=float(arrivals[-1])),
        y=Axis(label="requests/s", low=0.0, high=high),
        lines=(
            Line(
                label="came, by the minute",
                x=minutes,
                y=tuple(counts),
                colour=Colour.BLUE,
                is_step=True,
            ),
            Line(
                label="carried within the SLA by the replicas in force (low end)",
                x=ends,
                y=(*rates, rates[-1]),
                colour=Colour.GREEN,
                is_step=True,
            ),
        ),
        limits=tuple(
            Limit(label=f"{entry.num_devices} devices carry", at=entry.low_rps, colour=Colour.SKY)
            for entry in table.entries
        ),
    )


if __name__ == "__main__":
    main()
