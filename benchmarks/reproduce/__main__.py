"""Question: how near does simulation come to what three papers published?

python -m benchmarks.reproduce                 all three, reports into benchmarks/reports
python -m benchmarks.reproduce shift           one of shift, albireo, dense
python -m benchmarks.reproduce dense --out DIR
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.reproduce import albireo, dense, shift

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT / "benchmarks" / "reports"
TRACES = ROOT.parent / "shared" / "traces"
TITLES = {
    "shift": "Shift Parallelism (arXiv 2509.16495), simulated",
    "albireo": "Albireo (arXiv 2606.01927), simulated",
    "dense": "Dense deployment (arXiv 2603.05692), simulated",
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packs", nargs="*", metavar="PACK", help=", ".join(TITLES))
    parser.add_argument("--out", type=Path, default=REPORTS, help="folder of the reports")
    parser.add_argument("--traces", type=Path, default=TRACES, help="folder of the public traces")
    options = parser.parse_args(arguments)
    names = options.packs or list(TITLES)
    if unknown := [name for name in names if name not in TITLES]:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(TITLES)}")
    for name in names:
        started_s = time.monotonic()
        today = datetime.datetime.now(tz=datetime.UTC).date()
        path = options.out / f"{today}-reproduce-{name}.md"
        path.write_text("\n".join(report(name, options.traces)))
        print(f"{name} -> {path} ({time.monotonic() - started_s:.0f} s)", flush=True)
    return 0


def report(name: str, traces: Path) -> Iterator[str]:
    """The lines of one report."""
    yield f"# {TITLES[name]}"
    yield ""
    yield f"* Date: {datetime.datetime.now(tz=datetime.UTC).date()}; seed 0; everything simulated"
    yield f"* Command: `python -m benchmarks.reproduce {name}`"
    yield ""
    match name:
        case "shift":
            yield from shift.sections(traces, shift.Size())
        case "albireo":
            yield from albireo.sections(albireo.Size())
        case _:
            yield from dense.sections(dense.Size())


if __name__ == "__main__":
    sys.exit(main())
