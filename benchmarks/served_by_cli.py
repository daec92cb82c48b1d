"""Question: do the commands that anybody can type say of published runs what their report says?

Rows are drawn by seed, as many of each group. Each becomes one ``gearshift simulate`` with the
shipped profile: its workload, limits, release and settings are words of that command, which stand
in the report, and all of its requests are simulated. Nothing else of the calibration is used.

    python -m benchmarks.served_by_cli --data ../shared/silicon --out FILE.md
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.reporting import publish
from tuner.calibration.served_rows import ServedRow, read_served_rows

FloatArray = npt.NDArray[np.float64]
# Bounds that every run meets: their intervals are asked for.
SLA = "mean_ttft_ms<=1e7,mean_tpot_ms<=1e7"
METRICS = ("ttft_ms", "tpot_ms")
HEAD = (
    "| {} | rows | TTFT median | bias | inside | TPOT median | bias | inside |",
    "|---|---:|---:|---:|---:|---:|---:|---:|",
)


@dataclass(frozen=True, kw_only=True)
class Told:
    """A row and what its command said: means of TTFT and TPOT in ms with the ends of their 90 %
    intervals. ``error`` is what it said instead."""

    row: ServedRow
    words: tuple[str, ...]
    values: FloatArray | None = None
    error: str = ""

    @property
    def published_ms(self) -> FloatArray:
        return 1e3 * np.array([self.row.ttft_s, self.row.tpot_s])


def command_of(row: ServedRow) -> tuple[str, ...]:
    """The words that simulate ``row`` as it was: all of its requests, by the shipped profile."""
    caps = row.caps
    return (
        *("gearshift", "simulate", "--model", row.model, "--dtype", row.precision),
        *("--hardware", f"{row.tp}x{row.device}", "--backend", str(row.choice)),
        *("--plan", f"tp={row.tp}", "--max-num-seqs", str(caps.max_num_seqs)),
        *("--max-num-batched-tokens", str(caps.max_num_batched_tokens)),
        *("--workload", row.workload_spec(row.requests // row.concurrency), "--sla", SLA),
    )


def ask(row: ServedRow) -> Told:
    """Run the command of ``row`` as a process of its own."""
    words = command_of(row)
    done = subprocess.run(
        [sys.executable, "-m", "api.cli.main", *words[1:], "--json"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
    )
    if done.returncode:
        return Told(row=row, words=words, error=done.stderr.strip().splitlines()[-1])
    document = json.loads(done.stdout)
    values = [
        [document["metrics"][name]["mean"], ends["low"], ends["high"]]
        for name in METRICS
        for ends in [document["intervals"][f"mean_{name}"]]
    ]
    return Told(row=row, words=words, values=np.array(values))


def drawn(rows: Sequence[ServedRow], each: int, seed: int) -> list[ServedRow]:
    """``each`` rows of every group, or all where it has fewer."""
    rng = np.random.default_rng(seed)
    found = []
    for group in sorted({row.group for row in rows}):
        mine = [row for row in rows if row.group == group]
        found += [mine[i] for i in sorted(rng.permutation(len(mine))[:each])]
    return found


def report_lines(
    told: Sequence[Told], options: argparse.Namespace, seconds: float
) -> Iterator[str]:
    """The report as Markdown."""
    known = [each for each in told if each.values is not None]
    yield "# Published runs, simulated by the command line alone\n"
    yield f"* Date: {datetime.datetime.now(tz=datetime.UTC).date()}; seed {options.seed}"
    yield (
        "* Command: `python -m benchmarks.served_by_cli --data ../shared/silicon "
        f"--each {options.each} --seed {options.seed}`"
    )
    yield "* Each row is one `gearshift simulate` with the shipped profile, which was fitted on"
    yield "  rows like it (with their group held out: `benchmarks.end_to_end`). *Inside*: the share"
    yield "  whose published mean lies in the 90 % interval that the command tells."
    yield f"* {len(told)} commands took {seconds:.0f} s; {len(told) - len(known)} gave no answer.\n"
    yield from _table("group", known, lambda each: each.row.group)
    yield from _table("tensor-parallel degree", known, lambda each: str(each.row.tp))
    yield from _table("clients", known, lambda each: f"{each.row.concurrency:>3}")
    yield "\n## Commands\n"
    yield "Published and said: mean TTFT and TPOT in ms.\n"
    for each in told:
        said = each.error
        if each.values is not None:
            said = f"{each.values[0, 0]:.1f}, {each.values[1, 0]:.2f}"
        published = each.published_ms
        yield f"    {shlex.join(each.words)}"
        yield f"    # published {published[0]:.1f}, {published[1]:.2f}; said {said}\n"


def _table(title: str, told: Sequence[Told], key: Callable[[Told], str]) -> Iterator[str]:
    yield HEAD[0].format(title)
    yield HEAD[1]
    for name in sorted({key(each) for each in told}):
        yield _line(name.strip(), [each for each in told if key(each) == name])
    yield _line("all", told) + "\n"


def _line(name: str, told: Sequence[Told]) -> str:
    values = np.array([each.values for each in told])
    published = np.array([each.published_ms for each in told])
    errors = values[:, :, 0] / published - 1
    inside = (values[:, :, 1] <= published) & (published <= values[:, :, 2])
    middle, bias = np.median(np.abs(errors), axis=0), np.median(errors, axis=0)
    cells = (f"{middle[i]:.1%} | {bias[i]:+.1%} | {inside[:, i].mean():.0%}" for i in range(2))
    return f"| {name} | {len(told)} | {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> int:
    """Draw, run every command and write the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.served_by_cli")
    parser.add_argument("--data", type=Path, required=True, help="the folder of measurements")
    parser.add_argument("--each", type=int, default=12, help="rows of each group")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="commands at once")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    rows = drawn(read_served_rows(options.data), options.each, options.seed)
    begun_s = time.monotonic()
    with ThreadPoolExecutor(options.jobs) as pool:
        told = list(pool.map(ask, rows))
    publish("\n".join(report_lines(told, options, time.monotonic() - begun_s)), options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
