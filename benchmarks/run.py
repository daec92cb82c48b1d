"""Runs the benchmarks one after the other and writes a dated report of each.

python -m benchmarks.run                      all of them (about an hour on a quiet machine)
python -m benchmarks.run sampling collectives some of them
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

REPORTS = Path(__file__).parent / "reports"
# Name of the module and of its report, quickest first.
BENCHMARKS = (
    "scheduler_cost",
    "host_overhead",
    "sampling",
    "kill_campaign",
    "guidellm_sweep",
    "collectives",
    "simulated_vs_measured",
    "link_crossover",
    "simulation_speed",
    "plan_speed",
)


def main() -> int:
    """Run the benchmarks named on the command line; 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    names = parser.parse_args().names or BENCHMARKS
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(BENCHMARKS)}")
    failed = [name for name in names if not _run(name)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _run(name: str) -> bool:
    report = REPORTS / f"{time.strftime('%Y-%m-%d')}-{name.replace('_', '-')}.md"
    print(f"{name} -> {report}", flush=True)
    command = [sys.executable, "-m", f"benchmarks.{name}", "--out", str(report)]
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
