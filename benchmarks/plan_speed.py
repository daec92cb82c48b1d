"""Question: how long does planning for eight devices take on two cores?

``gearshift plan`` as a user starts it, from a cold start: every plan of Llama-3.1-70B in FP8 on
8xH200, Shift on and off, up to eight cap settings each, for a 15-minute slice of the Azure code
trace.

    python -m benchmarks.plan_speed --trace ../shared/traces/azure2023/FILE.csv --out FILE.md
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.quiet import OtherPrograms
from benchmarks.reporting import publish
from engine.spec.settings import Settings

MODEL, DTYPE, HARDWARE = "llama-3.1-70b", "fp8", "8xh200"
SLA = "p95_ttft_ms<=8000,p95_tpot_ms<=200"
TARGET_S = 10.0
JOBS = 2
COMMAND = "python -m benchmarks.plan_speed --trace ../shared/traces/azure2023/FILE.csv --out FILE"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One planning run: its document, and what it cost."""

    document: dict[str, Any]
    digest: int
    wall_s: float
    cpu_s: float
    others_share: float


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path, required=True, help="the Azure code trace")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the report here too")
    options = parser.parse_args(arguments)
    runs = [_run(options.trace) for _ in range(options.runs)]
    report = "\n".join([*_head(), *_times(runs), *_what(runs[0])])
    publish(report + "\n", options.out)
    return 0


def _run(trace: Path) -> Run:
    command = [
        *(sys.executable, "-m", "api.cli.main", "plan"),
        *("--model", MODEL, "--dtype", DTYPE, "--hardware", HARDWARE, "--sla", SLA),
        *("--workload", f"azure:{trace},seconds=900", "--jobs", str(JOBS), "--json"),
    ]
    before, started_s = _children_s(), time.monotonic()
    with OtherPrograms() as others:
        done = subprocess.run(command, check=True, capture_output=True, env=_one_thread())
    return Run(
        document=json.loads(done.stdout),
        digest=hash(done.stdout),
        wall_s=time.monotonic() - started_s,
        cpu_s=_children_s() - before,
        others_share=others.share,
    )


def _one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _head() -> list[str]:
    return [
        "# Planning for eight devices: wall time",
        "",
        f"* Date: {datetime.datetime.now(tz=datetime.UTC).date()}; seed 0; {JOBS} processes",
        f"* Machine: {os.cpu_count()} cores, {platform.machine()}; Python "
        f"{platform.python_version()}, numpy {version('numpy')}",
        f"* Command: `{COMMAND}`",
        f"* Asked: {MODEL} in {DTYPE} on {HARDWARE}, the first 900 s of the Azure code trace, "
        f"`{SLA}`",
        "",
    ]


def _times(runs: list[Run]) -> list[str]:
    rows = [
        f"| {number} | {run.wall_s:.1f} | {run.cpu_s:.1f} | {100 * run.others_share:.0f} % |"
        for number, run in enumerate(runs, 1)
    ]
    best = min(run.wall_s for run in runs)
    verdict = "met" if best <= TARGET_S else "missed"
    same = len({run.digest for run in runs}) == 1
    return [
        "## From a cold start to the answer",
        "",
        "| run | wall s | CPU s, all processes | cores used by other programs |",
        "|---|---|---|---|",
        *rows,
        "",
        f"Target: under {TARGET_S:.0f} s of wall time; {verdict} (best run {best:.1f} s). "
        f"The runs' documents are {'equal' if same else 'NOT equal'} byte for byte.",
        "",
    ]


def _what(run: Run) -> list[str]:
    document = run.document
    feasible = {Settings.from_json(p["settings"]).plan for p in document["feasible"]}
    fails = Counter(f"{f['why']} (seen on: {f['judged_on']})" for f in document["failing"])
    judged = document["judged"]
    best = [
        f"| {role} | {Settings.from_json(each['settings'])} | {_interval(each, 'p95_ttft_ms')} "
        f"| {_interval(each, 'p95_tpot_ms')} | {each['sla_probability']:.2f} |"
        for role, each in document["best"].items()
    ]
    return [
        "## What was done in it",
        "",
        f"{document['workload']['rows']} requests. {len(feasible)} plans meet the SLA. Settings "
        f"judged: {judged.get('whole', 0)} on the whole workload, {judged.get('slice', 0)} on its "
        f"busiest stretch only, {judged.get('alone', 0)} plans first on single requests.",
        "",
        "| plans that fail by | number |",
        "|---|---|",
        *(f"| {why} | {count} |" for why, count in sorted(fails.items())),
        "",
        "## What came out",
        "",
        "| | settings | p95 TTFT ms | p95 TPOT ms | P(SLA met) |",
        "|---|---|---|---|---|",
        *best,
        "",
        "Simulated on described hardware, not measured; intervals are those of the device's step "
        "times.",
    ]


def _interval(each: dict[str, Any], key: str) -> str:
    parts = each["metrics"][key]
    return f"{parts['value']:.4g} ({parts['low']:.4g} .. {parts['high']:.4g})"


if __name__ == "__main__":
    sys.exit(main())
