"""Loads that ask for another number of replicas at another time."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from policies.capacity_table import CapacityTable
from policies.load_history import DAY_S, SLOT_S, LoadHistory, LoadSlot
from tuner.workload.parse import parse_workload
from tuner.workload.workload import Workload

INPUT, OUTPUT = 4096, 128
LENGTHS = f"input={INPUT},output={OUTPUT},input_cv=0.8,output_cv=0.8"
# What capacity tables are found with. The trace's is of the part of it that no run serves.
SAMPLE = f"poisson:rate=0.7,seconds=400,{LENGTHS}"
AZURE = "azure2023/AzureLLMInferenceTrace_code.csv"
AZURE_SERVED_S, AZURE_SAMPLE_S = 1800.0, 900.0
SERVEGEN = "servegen/rate_m-large.csv"
# As many days of history the service keeps.
DAYS_KEPT = 3


@dataclass(frozen=True, kw_only=True)
class Load:
    """A workload by name, and how to make it again in another process.

    ``kind``: a shape that the policy was chosen on (``synthetic``), or one that was only looked at
    afterwards.
    ``sample``: the load that its capacity table is found with.
    """

    name: str
    spec: str
    seed: int
    kind: str = "synthetic"
    sample: str = SAMPLE

    def workload(self) -> Workload:
        return parse_workload(self.spec, seed=self.seed)

    def past(self) -> list[Workload]:
        """Loads like it that came before, one after the other: other draws, or another part of the
        trace."""
        if self.sample != SAMPLE:
            return [parse_workload(self.sample, seed=self.seed)]
        return [
            parse_workload(self.spec, seed=self.seed + 1000 * n) for n in range(1, DAYS_KEPT + 1)
        ]


def list_loads(
    folder: Path, traces: Path | None, *, day_s: float, top_rps: float, seed: int
) -> list[Load]:
    """Days by a table of rates, a square wave, a ramp, a step; a ServeGen day and the Azure code
    trace where ``traces`` has them. ``top_rps`` is about what the busiest minutes bring."""
    half_s, low = day_s / 2, 0.2 * top_rps
    days = {
        "day of one wave": 0.55 - 0.45 * _wave(day_s, 1),
        "day of two peaks": 0.45 - 0.27 * _wave(day_s, 1) - 0.18 * _wave(day_s, 3),
    }
    loads = [
        Load(
            name=name,
            spec=f"servegen:{rate_table(folder, name, rates * top_rps)}",
            seed=seed + 1 + nth,
        )
        for nth, (name, rates) in enumerate(days.items())
    ]
    fast = f"on_s=60,off_s=60,seconds={half_s:g}"
    specs = {
        "square wave of a minute": f"burst:rate={low:g},peak={0.8 * top_rps:g},{fast},{LENGTHS}",
        "ramp": f"ramp:rate={low / 2:g},to={top_rps:g},seconds={half_s:g},{LENGTHS}",
        "step": f"step:rate={low:g},to={0.8 * top_rps:g},at={half_s / 2:g},seconds={half_s:g},"
        f"{LENGTHS}",
    }
    loads += [
        Load(name=name, spec=spec, seed=seed + 3 + nth)
        for nth, (name, spec) in enumerate(specs.items())
    ]
    return loads + ([] if traces is None else _real(folder, traces, day_s, top_rps))


def _real(folder: Path, traces: Path, day_s: float, top_rps: float) -> list[Load]:
    azure = f"azure:{traces / AZURE}"
    day = f"servegen:{_served_day(folder, traces, day_s, top_rps)}"
    return [
        Load(
            name="Azure code trace",
            spec=f"{azure},seconds={min(day_s / 2, AZURE_SERVED_S):g}",
            seed=0,
            kind="real",
            sample=f"{azure},start={AZURE_SERVED_S:g},seconds={AZURE_SAMPLE_S:g}",
        ),
        Load(name="ServeGen day (m-large)", spec=day, seed=31, kind="real"),
    ]


def _wave(day_s: float, waves: int) -> np.ndarray:
    return np.cos(2 * np.pi * waves * np.arange(0, day_s, SLOT_S) / day_s)


def rate_table(folder: Path, name: str, rates: np.ndarray) -> Path:
    """A table of ``rates`` f8[N] by the minute, requests a second, in a file of that name."""
    at = np.arange(len(rates)) * SLOT_S
    rows = [(s, max(float(rate), 0.0), INPUT, OUTPUT) for s, rate in zip(at, rates, strict=True)]
    return _write(folder / f"{name.replace(' ', '-')}.csv", rows)


def _served_day(folder: Path, traces: Path, day_s: float, top_rps: float) -> Path:
    """The first day of a table: as long as the other days, its lengths around those of the others,
    its busiest window at ``top_rps`` of these."""
    with (traces / SERVEGEN).open() as file:
        found = [row for row in csv.DictReader(file) if float(row["window_start_s"]) < DAY_S]
    starts = np.array([float(row["window_start_s"]) for row in found]) * day_s / DAY_S
    columns = ("rate_rps", "mean_input_tokens", "mean_output_tokens")
    rates, inputs, outputs = (np.array([float(row[name]) for row in found]) for name in columns)
    inputs *= INPUT / np.average(inputs, weights=rates)
    outputs *= OUTPUT / np.average(outputs, weights=rates)
    rates *= top_rps / np.max(rates * np.maximum(inputs / INPUT, outputs / OUTPUT))
    rows = list(zip(starts, rates, inputs, outputs, strict=True))
    return _write(folder / "servegen-day.csv", rows)


def _write(path: Path, rows: Sequence[Sequence[float]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["window_start_s", "rate_rps", "mean_input_tokens", "mean_output_tokens"])
        writer.writerows(rows)
    return path


def rates_of(workload: Workload, table: CapacityTable) -> LoadHistory:
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
